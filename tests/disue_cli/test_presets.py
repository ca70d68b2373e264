"""Presets of `disue compare`: in which setting they run, what overrides it, and what they report."""

import csv
import gzip
import re
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disue.assignments import parse_assignments
from disue.data import DATASETS, Dataset, Examples, build_federation, datasets, federation
from disue.data.datasets import FileDataset
from disue.data.scenarios import rotate
from disue_cli.commands.compare import make_cells
from disue_cli.compare.cells import Cell
from disue_cli.compare.numbers import Reported, first_reaching, mean_of_last, setting
from disue_cli.compare.presets import PRESETS, TARGETS, Preset, chosen, targets
from disue_cli.compare.tables import write_results, write_table
from server_app.checks import check_names
from server_app.config import RunConfig
from strategies.methods import METHODS

ROOT = Path(__file__).parents[2]
FILES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
SMALL = {"num-server-rounds": "2", "global-test-size": "100", "proxy-size": "60", "distill-steps": "5"}
SMALL |= {"proxy-samples": "0", "calibration-epochs": "2"}


def blank(name: str, train: int, test: int) -> Dataset:
    """Return images of equal classes that take no memory."""

    def examples(count: int) -> Examples:
        x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8).expand(count, -1, -1, -1)
        return Examples(x, torch.arange(count) % 10)

    return Dataset(name, tuple("0123456789"), examples(train), examples(test), (0.3,), (0.3,))


class Files(FileDataset):
    """A dataset whose files are there, or not."""

    def __init__(self, name: str, there: bool) -> None:
        self.name, self.there = name, there

    def __call__(self, data_dir: Path | None) -> Dataset:
        """Return images of no content."""
        return blank(self.name, 60_000, 10_000)

    def missing_from(self, data_dir: Path | None) -> list[Path]:
        """Return a place."""
        return [] if self.there else [Path("/the/cache")]


@pytest.fixture
def there(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the files of some datasets, and of no other."""
    names = ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")
    caches = (datasets.load_dataset, federation.federation_of)
    with DATASETS.scope({name: Files(name, name in request.param) for name in names}):
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


def cells_of(name: str, *assignments: str, **given: Any) -> list[Cell]:
    clients = given.pop("clients", None)
    wanted, _ = chosen(name, given, clients, parse_assignments(list(assignments)))
    values = dict(wanted.settings)
    return make_cells(wanted.methods, wanted.scenarios, [7], wanted.datasets, wanted.clients, values, Path("x"))


# --- in which setting -----------------------------------------------------------------------------


@pytest.mark.parametrize("there", [("cifar10", "cifar100", "svhn")], indirect=True)
def test_paper_is_the_usual_setting_of_sampled_clients(there: None) -> None:
    cells = cells_of("paper")
    assert {(cell.dataset, cell.config.alpha) for cell in cells} == {
        (name, alpha) for name in ("cifar10", "cifar100", "svhn") for alpha in (0.1, 0.3)
    }
    for cell in cells:
        config = cell.config
        assert (cell.clients, config.scenario, config.fraction_train, config.local_epochs) == (100, "dirichlet", 0.1, 5)
        check_names(config)
    assert {"disue", "fedavg", "fedlc"} <= {cell.config.method for cell in cells}
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize("there", [("mnist",)], indirect=True)
def test_rotated_mnist_is_table_1_of_ghosh_et_al(there: None) -> None:
    """1,200 clients of 200 images, each image in four rotations; ten steps with all images; a hidden layer of 200."""
    (cell,) = {cell.config.method: cell for cell in cells_of("rotated-mnist") if cell.label == "ifca"}.values()
    config = cell.config
    assert (cell.dataset, cell.clients, config.local_epochs, config.learning_rate, config.momentum) == (
        *("mnist", 1200, 10, 0.1),
        0.0,
    )
    made = build_federation(config, cell.clients)
    sizes = [len(part) for part in made.train_parts]
    of_proxy = 2000
    assert np.mean(sizes) == (60_000 - of_proxy) * 4 / 1200
    assert max(sizes) <= config.batch_size
    groups = [np.sort(np.concatenate(made.train_parts[group::4])) for group in range(4)]
    assert all(np.array_equal(one, other) for one, other in pairwise(groups))
    assert len(np.unique(groups[0])) == 60_000 - of_proxy
    pattern = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    turned = [made.scenario.transform(Examples(pattern, torch.zeros(1)), group).x for group in range(4)]
    assert all(torch.equal(turned[k], rotate(pattern, 90.0 * k)) for k in range(4))


@pytest.mark.parametrize(
    ("name", "there", "taken", "left_out"),
    [
        ("paper", (), ("fashion-mnist",), ("cifar10", "cifar100", "svhn")),
        ("paper", ("svhn",), ("svhn",), ("cifar10", "cifar100")),
        ("paper", ("cifar10", "cifar100", "svhn"), ("cifar10", "cifar100", "svhn"), ()),
        ("rotated-mnist", (), ("fashion-mnist",), ("mnist",)),
        ("rotated-mnist", ("mnist",), ("mnist",), ()),
    ],
    indirect=["there"],
)
def test_what_has_no_files_is_left_out_and_said(
    there: None, name: str, taken: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    wanted, remark = chosen(name, {}, None, {})
    assert wanted.datasets == taken
    if not left_out:
        assert remark == ""
    else:
        instead = "fashion-mnist is taken" if "fashion-mnist" in taken else "the others are taken"
        names = ", ".join(left_out)
        assert remark == (
            f"{names}: no files in /the/cache, so {instead}; --datasets {','.join(left_out)} downloads them"
        )


@pytest.mark.parametrize("there", [("mnist",)], indirect=True)
def test_what_is_given_comes_before_the_preset(there: None) -> None:
    (cell,) = cells_of(
        "rotated-mnist", "learning-rate=0.5", "num-groups=2", clients=24, methods=("fedavg",), datasets=("digits",)
    )
    config = cell.config
    assert (cell.dataset, cell.clients, config.method, config.learning_rate, config.num_groups) == (
        *("digits", 24, "fedavg"),
        *(0.5, 2),
    )
    assert (config.model, config.local_epochs) == ("mlp-200", 10)  # what was not given stays
    assert {cell.scenario for cell in cells_of("rotated-mnist", scenarios=("label-swap",))} == {"label-swap"}
    said = re.fullmatch("24 clients, (.+); all else at its default", setting([cell]))
    assert said
    asked = dict(PRESETS["rotated-mnist"].settings) | {"learning-rate": 0.5, "num-groups": 2}
    assert asked.pop("train-examples") == RunConfig().train_examples
    assert parse_assignments(said[1].split()) == asked


@pytest.mark.parametrize("there", [()], indirect=True)
def test_a_setting_that_is_given_stands_for_those_of_the_scenarios(there: None) -> None:
    assert {(cell.scenario, cell.config.alpha) for cell in cells_of("paper", "alpha=0.5")} == {("dirichlet", 0.5)}
    kept = {(cell.scenario, cell.config.alpha) for cell in cells_of("paper", "num-groups=4")}
    assert kept == {("dirichlet:alpha=0.1", 0.1), ("dirichlet:alpha=0.3", 0.3)}


def test_a_scenario_has_settings_of_its_own() -> None:
    scenarios = ["dirichlet:alpha=0.3:train-examples=50", "dirichlet"]
    first, second = make_cells(["fedavg"], scenarios, [7], ["digits"], 6, {"alpha": 0.7}, Path("x"))
    assert (first.config.scenario, first.config.alpha, first.config.train_examples) == ("dirichlet", 0.3, 50)
    assert (second.config.alpha, second.config.train_examples) == (0.7, 200)
    assert first.name == "digits-dirichlet_alpha=0.3_train-examples=50-fedavg-seed7"


def test_the_ablation_and_no_preset_are_in_the_setting_of_the_command() -> None:
    for name, methods in (("ablation", PRESETS["ablation"].methods), (None, tuple(METHODS))):
        wanted, remark = chosen(name, {}, None, {"alpha": 0.5})
        assert wanted == Preset(methods, ("digits",), "", ("label-groups",), 12, {"alpha": 0.5}, 1, False)
        assert remark == ""
        assert targets(wanted, None) == {}


def test_targets_are_of_the_dataset_or_as_given() -> None:
    wanted = Preset(("fedavg",), datasets=("digits", "svhn"), with_target=True)
    assert targets(wanted, None) == {"digits": TARGETS["digits"], "svhn": TARGETS["svhn"]}
    assert targets(wanted, 0.3) == {"digits": 0.3, "svhn": 0.3}
    assert targets(Preset(("fedavg",)), 0.3) == {"digits": 0.3}


def test_every_preset_is_in_the_help_and_in_the_readme(said) -> None:  # type: ignore[no-untyped-def]
    shown, _ = said("compare", "--help")
    table = (ROOT / "README.md").read_text()
    for name in PRESETS:
        assert name in shown
        assert f"| `{name}` |" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "papr"], "--preset: got 'papr' (did you mean 'paper'?); there is ablation, paper, rotated-mnist"),
        (["--target-accuracy", "1.5"], "--target-accuracy: got 1.5; expected a number above 0, at most 1"),
        (["--target-accuracy", "0"], "--target-accuracy: got 0; expected a number above 0, at most 1"),
        (["--target-accuracy", "nan"], "--target-accuracy: got nan; expected a number above 0, at most 1"),
        (["--preset", "paper", "--datasets", "mnits"], "dataset: 'mnits' does not exist (did you mean 'mnist'?)"),
        (["--preset", "paper", "--methods", "fedavgg"], "method: 'fedavgg' does not exist (did you mean 'fedavg'?)"),
        (["--preset", "paper", "--set", "data-dir=/no/such"], "data-dir: '/no/such' is not a directory"),
        (["--scenarios", "dirichlet:"], "--scenarios: got 'dirichlet:'; expected SCENARIO or SCENARIO:KEY=VALUE"),
        (
            ["--scenarios", "dirichlet:batch-size=3"],
            "--scenarios: batch-size cannot be set for one scenario alone, use --set\n",
        ),
        (["--scenarios", "dirichlet:dataset=mnist"], "--scenarios: dataset cannot be set for one scenario alone"),
        (["--scenarios", "dirichlet:scenario=iid"], "scenario: cannot be set in a comparison; use --scenarios"),
        (["--scenarios", "dirichlet:alhpa=3"], "alhpa: no such run config key (did you mean 'alpha'?)"),
        (["--scenarios", "dirichlet:alpha=-3"], "alpha: got -3"),
        (
            ["--preset", "rotated-mnist", "--datasets", "digits", "--scenarios", "label-groups", "--clients", "8"],
            "reuse-examples: got true; scenario 'label-groups' shows all groups the same data; use false",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], words: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert words in refused("compare", "--output", "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_a_target_asks_for_one(tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    with DATASETS.scope():
        DATASETS.register("mine")(lambda data_dir: blank("mine", 600, 200))
        said = refused("compare", "--output", tmp_path / "out", "--preset", "paper", "--datasets", "mine")
    assert said.endswith("--target-accuracy: there is none by default for dataset 'mine'; give one\n")


# --- what is reported -----------------------------------------------------------------------------

ACCURACY = st.none() | st.sampled_from([0.1, 0.3, 0.5, 0.7])


def row(number: int, universal: float | None, **changes: Any) -> dict[str, Any]:
    others = dict.fromkeys(("expert_accuracy", "worst_decile_accuracy"), 0.5)
    sent = {"bytes_up": 1_000_000, "bytes_down": 500_000}
    return {"round": number, "universal_accuracy": universal, "personal_accuracy": None} | others | sent | changes


@given(st.lists(st.tuples(ACCURACY, st.integers(0, 99), st.integers(0, 99)), max_size=9), st.sampled_from([0.3, 0.6]))
def test_a_target_is_reached_where_the_monotone_curve_crosses_it(rounds: list[Any], target: float) -> None:
    """McMahan et al. 2017, section 3: the best value so far."""
    rows = [row(i, universal, bytes_up=up, bytes_down=down) for i, (universal, up, down) in enumerate(rounds, start=1)]
    best = np.maximum.accumulate([universal or 0.0 for universal, _, _ in rounds] or [0.0])
    first = int(np.searchsorted(best, target))
    sent = np.cumsum([up + down for _, up, down in rounds])
    assert first_reaching(rows, target) == (None if first == len(best) else (first + 1, sent[first]))


def test_the_mean_of_the_last_rounds_leaves_out_those_that_say_nothing() -> None:
    rows = [row(i, i / 10 if i % 2 else None) for i in range(1, 9)]
    assert mean_of_last(rows, "universal_accuracy", 4) == pytest.approx((0.5 + 0.7) / 2)
    assert mean_of_last(rows, "universal_accuracy", 100) == pytest.approx(np.mean([0.1, 0.3, 0.5, 0.7]))
    assert mean_of_last(rows, "personal_accuracy", 4) is None


class Told(Cell):
    """A cell whose rounds are known."""

    curves: Mapping[tuple[str, int], list[float]] = {
        ("fedavg", 0): [0.5, 0.8, 0.6],
        ("fedavg", 1): [0.5, 0.6, 0.7],
        ("fedavg", 2): [0.5, 0.6, 0.6],
        ("disue", 0): [0.9, 0.9, 0.9],
        ("disue", 1): [0.6, 0.9, 0.8],
        ("disue", 2): [0.7, 0.7, 0.7],
        ("local", 0): [0.1, 0.1, 0.1],
        ("local", 1): [0.1, 0.1, 0.1],
        ("local", 2): [0.1, 0.1, 0.1],
        ("ifca", 0): [0.7, 0.7, 0.99],
    }

    def rows(self) -> list[dict[str, Any]]:
        """Return the rounds."""
        return [row(i, universal) for i, universal in enumerate(self.curves[self.label, self.seed], start=1)]


def told() -> list[tuple[Cell, dict[str, Any]]]:
    costs = ("client_steps", "personal_steps", "bytes_up", "bytes_down", "seconds_clustering", "seconds_distillation")
    summary = dict.fromkeys((*costs, "wall_seconds", "cpu_seconds", "num_clusters"), 1) | {"universal_accuracy": 0.123}
    return [
        (Told("digits", "iid", method, RunConfig(method=method, seed=seed, alpha=0.5), 6, Path("x")), summary)
        for method, seed in Told.curves
    ]


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Return the tables of a page: of each its rows by their first column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *lines = [line.strip("| ").split(" | ") for line in block.splitlines()]
        found.append({line[0].split(" (")[0]: dict(zip(header, line, strict=False)) for line in lines})
    return found


def test_the_table_has_the_last_rounds_mean_and_what_the_target_took(tmp_path: Path) -> None:
    write_table(told(), tmp_path / "table.md", Reported(2, {"digits": 0.7}))
    text = (tmp_path / "table.md").read_text()
    assert "Each with 6 clients, alpha=0.5; all else at its default.\n" in text
    assert "Accuracies are means over the last 2 rounds" in text
    reached, costs = tables(text)
    means = [np.mean(Told.curves["fedavg", seed][1:]) for seed in range(3)]
    assert reached["fedavg"]["universal"] == f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}"
    against = [np.mean(Told.curves["disue", seed][1:]) - means[seed] for seed in range(3)]
    assert reached["disue"]["universal − fedavg"] == f"+{np.mean(against):.3f} ± {np.std(against, ddof=1):.3f}"
    assert reached["disue"]["universal"].startswith("**")  # ifca has more, and is told the number of groups
    assert reached["ifca"]["universal"] == f"{np.mean([0.7, 0.99]):.3f}"
    assert (costs["disue"]["rounds to 0.7"], costs["disue"]["MB to 0.7"]) == ("1", "1.5")  # 1, 2 and 1
    assert (costs["fedavg"]["rounds to 0.7"], costs["fedavg"]["MB to 0.7"]) == (
        "3 (2 of 3 seeds)",
        "4.5 (2 of 3 seeds)",
    )
    assert (costs["local"]["rounds to 0.7"], costs["local"]["MB to 0.7"]) == ("-", "-")
    assert costs["ifca"]["rounds to 0.7"] == "1"  # of the one seed that ran
    assert "*rounds to* an accuracy" in text


def test_the_results_have_columns_for_it_and_the_settings(tmp_path: Path) -> None:
    write_results(told(), tmp_path / "results.csv", Reported(2, {"digits": 0.7}))
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = {(row["method"], row["seed"]): row for row in csv.DictReader(file)}
    assert float(rows["disue", "1"]["last_2_universal_accuracy"]) == pytest.approx(0.85)
    assert rows["disue", "1"]["universal_accuracy"] == "0.123"  # of the last round, as ever
    assert rows["disue", "1"]["last_2_personal_accuracy"] == ""
    kinds = ("target_accuracy", "rounds_to_target", "bytes_to_target")
    assert [rows["disue", "1"][kind] for kind in kinds] == ["0.7", "2", "3000000"]
    assert [rows["local", "0"][kind] for kind in kinds] == ["0.7", "", ""]
    assert {row["settings"] for row in rows.values()} == {"alpha=0.5"}


def test_without_a_target_nothing_of_it_is_shown(tmp_path: Path) -> None:
    for reported in (Reported(), Reported(2), Reported(1, {"mnist": 0.7})):
        write_table(told(), tmp_path / "table.md", reported)
        reached, costs = tables((tmp_path / "table.md").read_text())
        assert not [column for column in costs["disue"] if " to " in column]
        expected = np.mean([0.9, 0.85, 0.7]) if reported.last_rounds == 2 else 0.123
        if reported != Reported(1, {"mnist": 0.7}):
            assert reached["disue"]["universal"].strip("*").startswith(f"{expected:.3f}")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with small files in MNIST's format, whose classes are bars in different places."""
    directory, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name in FILES.values():
        (directory / name / "raw").mkdir(parents=True)
        for part, count in (("train", 400), ("t10k", 200)):
            y = np.arange(count, dtype=np.uint8) % 10
            x = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
            for image, label in zip(x, y, strict=True):
                image[2 * label + 2 : 2 * label + 5, 4:20] = 250
            for kind, array in (("images-idx3", x), ("labels-idx1", y)):
                head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
                path = directory / name / "raw" / f"{part}-{kind}-ubyte.gz"
                path.write_bytes(gzip.compress(head + array.tobytes()))
    return directory


@pytest.mark.parametrize(
    ("name", "dataset", "clients", "scenarios", "methods"),
    [
        ("paper", "fashion-mnist", 10, ["dirichlet:alpha=0.1", "dirichlet:alpha=0.3"], ("fedavg", "disue")),
        ("rotated-mnist", "mnist", 8, ["rotation"], ("local", "oracle")),
    ],
)
def test_a_preset_runs_in_a_small_size(  # type: ignore[no-untyped-def]
    tmp_path: Path,
    files: Path,
    said,
    name: str,
    dataset: str,
    clients: int,
    scenarios: list[str],
    methods: tuple[str, ...],
) -> None:
    small = SMALL | {"data-dir": str(files)} | ({"fraction-train": "0.3"} if name == "paper" else {})
    words = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    words += ["--methods", ",".join(methods)] if methods else []
    out, _ = said(
        *("compare", "--preset", name, "--clients", clients, "--seeds", "7,", "--target-accuracy", "0.05"),
        *(*words, "--workers", "1", "--output", tmp_path / "out"),
    )
    assert f"preset {name}: {clients} clients, num-server-rounds=2 " in out
    assert (f"no files in {files}, so fashion-mnist is taken" in out) == (name == "paper")
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["dataset"], row["scenario"], row["method"]) for row in rows} == {
        (dataset, scenario, method) for scenario in scenarios for method in methods or PRESETS[name].methods
    }
    for row in rows:
        assert float(row["target_accuracy"]) == 0.05
        assert "num-server-rounds=2" in row["settings"].split()
        assert float(row["last_10_universal_accuracy"]) > 0.0
    fedavg = [row for row in rows if row["method"] == "fedavg"]
    assert {row["rounds_to_target"] for row in fedavg} <= {"1", "2"}
    assert all(float(row["bytes_to_target"]) <= float(row["bytes_up"]) + float(row["bytes_down"]) for row in fedavg)
    page = (tmp_path / "out/table.md").read_text()
    assert "| rounds to 0.05 | MB to 0.05 |" in page
    for scenario in scenarios:
        assert f"## {dataset}, {scenario}\n" in page
        plain = re.sub("[^a-z0-9.=-]", "_", scenario)
        assert (tmp_path / f"out/plots/accuracy-{dataset}-{plain}.png").exists()
