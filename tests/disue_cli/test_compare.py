"""`disue compare`: real runs in real worker processes, and tables from numbers that are known."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from common import FAST
from PIL import Image

from disue.assignments import parse_assignments
from disue.errors import ConfigError, DataError, FederationError
from disue_cli.commands.compare import compare, locked, make_cells, shared_keys
from disue_cli.compare import cells
from disue_cli.compare.cells import THREAD_VARIABLES, Cell, run_cells, seconds_left
from disue_cli.compare.presets import preset
from disue_cli.compare.tables import paired, write_table
from server_app.callbacks.checkpoint import Checkpointing
from server_app.checks import check_names
from server_app.config import RunConfig
from server_app.run_lock import exclusive
from server_app.stopping import ask_to_stop

QUICK = ["model=mlp", "num-server-rounds=2", "local-epochs=1", "distill-steps=20", "train-examples=20"]
QUICK += ["calibration-epochs=2", "proxy-samples=0"]
METHODS = "fedavg,oracle,disue,disue:clusterer=single"


def options(output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "methods": METHODS,
        "preset_name": None,
        "scenarios": "label-groups,dirichlet",
        "seeds": "7,8",
        "datasets": "digits",
        "clients": 6,
        "assignments": QUICK,
        "workers": 2,
        "output": output,
    } | changes


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    output = tmp_path_factory.mktemp("comparison") / "out"
    compare(**options(output))
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == before
    return output


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_a_row_for_every_run_that_makes_sense(comparison: Path) -> None:
    found = [(row["scenario"], row["method"], row["seed"]) for row in rows_of(comparison)]
    expected = {
        (scenario, method, seed)
        for scenario in ("label-groups", "dirichlet")
        for method in METHODS.split(",")
        for seed in ("7", "8")
        if (scenario, method) != ("dirichlet", "oracle")
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_a_cell_is_a_run_directory_with_the_numbers_of_its_row(comparison: Path, run) -> None:  # type: ignore[no-untyped-def]
    """The same run, in this process."""
    (row,) = (
        r for r in rows_of(comparison) if (r["scenario"], r["method"], r["seed"]) == ("label-groups", "disue", "8")
    )
    alone = run(seed=8, train_examples=20)
    for column in ("universal_accuracy", "expert_accuracy", "ari", "bytes_up", "bytes_down", "client_steps"):
        assert float(row[column]) == alone.summary[column]
    seconds = json.loads((comparison / "cells/digits-label-groups-disue-seed8/summary.json").read_text())
    assert float(row["server_seconds"]) == seconds["seconds_clustering"] + seconds["seconds_distillation"] > 0


def test_the_budget_is_the_same_and_the_rest_is_in_its_columns(comparison: Path) -> None:
    rows = [row for row in rows_of(comparison) if (row["scenario"], row["seed"]) == ("label-groups", "7")]
    assert len({row["client_steps"] for row in rows}) == 1
    by_method = {row["method"]: row for row in rows}
    assert int(by_method["disue"]["bytes_down"]) > int(by_method["fedavg"]["bytes_down"])


def test_a_method_with_a_setting_of_its_own_is_that_run(comparison: Path, run) -> None:  # type: ignore[no-untyped-def]
    by_method = {r["method"]: r for r in rows_of(comparison) if (r["scenario"], r["seed"]) == ("label-groups", "7")}
    row, alone = by_method["disue:clusterer=single"], run(seed=7, train_examples=20, clusterer="single")
    for column in ("universal_accuracy", "expert_accuracy", "bytes_up", "bytes_down"):
        assert float(row[column]) == alone.summary[column]
    assert row["expert_accuracy"] != by_method["disue"]["expert_accuracy"]
    assert row["num_clusters"] == "1"


def test_there_are_plots_and_they_show_something(comparison: Path) -> None:
    paths = sorted((comparison / "plots").iterdir())
    assert [path.name for path in paths] == sorted(
        f"{name}-digits-{scenario}.png"
        for name in ("accuracy", "models", "clients", "clusters")
        for scenario in ("label-groups", "dirichlet")
    )
    for path in paths:
        picture = Image.open(path).convert("RGB")
        assert picture.width > 400
        assert picture.getcolors(20) is None  # there are more


def test_a_repeated_command_runs_nothing_again_and_a_longer_one_only_what_is_new(
    comparison: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in comparison.glob("cells/*/summary.json")}
    table = (comparison / "table.md").read_text()
    compare(**options(comparison))
    assert "14 runs, 14 of them finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (comparison / "table.md").read_text() == table
    one = comparison / "cells/digits-dirichlet-fedavg-seed7"
    (one / "cell.json").unlink()  # as if it had been killed
    compare(**options(comparison))
    printed = capsys.readouterr().out
    assert "14 runs, 13 of them finished before" in printed
    assert "[14/14]  digits  dirichlet  fedavg  seed 7" in printed
    assert json.loads((one / "summary.json").read_text())["status"] == "completed"
    again = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if again[path] != before[path]} == {one / "summary.json"}


def test_runs_of_another_configuration_are_not_mixed_in(comparison: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a run with batch-size 32, not 16; name another directory"):
        compare(**options(comparison, assignments=[*QUICK, "batch-size=16"]))
    with pytest.raises(ConfigError, match=r"is a run with clients 6, not 7"):
        compare(**options(comparison, clients=7))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "fedavgg"], r"method: 'fedavgg' does not exist (did you mean 'fedavg'?); choose from local, "),
        (
            ["--scenarios", "rotatoin"],
            "scenario: 'rotatoin' does not exist (did you mean 'rotation'?); choose from iid",
        ),
        (["--methods", "disue:clusterer=kmean"], "clusterer: 'kmean' does not exist (did you mean 'kmeans'?)"),
        (["--datasets", "mnits"], "dataset: 'mnits' does not exist"),
        (
            ["--methods", "disue:train-examples=9"],
            "--methods: train-examples cannot be set for one method alone, use --set\n",
        ),
        (["--methods", "disue:seed=3"], "--methods: seed cannot be set for one method alone"),
        (["--methods", "disue:"], "--methods: got 'disue:'; expected METHOD or METHOD:KEY=VALUE"),
        (["--methods", "disue:clusterer"], "--methods: got 'disue:clusterer'; expected METHOD or METHOD:KEY=VALUE"),
        (["--methods", "disue:proxy=dataset:mnits"], "proxy: got 'dataset:mnits'; dataset: 'mnits' does not exist"),
        (["--preset", "ablatoin"], "--preset: got 'ablatoin' (did you mean 'ablation'?); there is ablation"),
        (["--preset", "ablation", "--methods", "disue"], "--preset: brings its own methods; use it or --methods"),
        (["--methods", ""], "--methods: got ''; expected one name or more"),
        (["--set", "seed=3"], "seed: cannot be set in a comparison; use --seeds"),
        (["--output", "~no-such-user/x"], "output-dir: '~no-such-user/x' cannot be used"),
        (["--output", "/proc/nowhere"], "output-dir: '/proc/nowhere' cannot be written"),
        (
            ["--seeds", "99999999999999999999999"],
            "--seeds: got '99999999999999999999999'; expected a count from 1 to 20,",
        ),
        (["--seeds", "99999999999999999999999,"], "--seeds: got '99999999999999999999999,'; expected"),
        (["--set", "method=fedavg"], "method: cannot be set in a comparison; use --methods"),
        (["--set", "output-dir=x"], "output-dir: cannot be set in a comparison; use --output"),
        (["--set", "resume-from=x"], "resume-from: cannot be set in a comparison; use --output"),
        (["--set", "alpha=-1"], "alpha: got -1"),
        (["--methods", "fedavg,fedavg"], "--methods: fedavg is given twice"),
        (["--methods", ","], "--methods: got ','; expected one name or more"),
        (["--seeds", "0"], "--seeds: got '0'; expected a count from 1 to 20, a list like 7,8,9 or a range like 0-2"),
        (["--seeds", "904"], "--seeds: got '904'; for the one seed 904 use '904,'; expected a count from 1 to 20,"),
        (["--seeds", "21"], "--seeds: got '21'; for the one seed 21 use '21,'; expected"),
        (["--seeds", "1,x"], "--seeds: got '1,x'"),
        (["--seeds", "2-0"], "--seeds: got '2-0'"),
        (["--seeds", "-1"], "--seeds: got '-1'"),
        (["--seeds", "0-9223372036854775807"], "--seeds: got '0-9223372036854775807'; at most 1000 seeds are taken"),
        (["--seeds", "9223372036854775808,"], "--seeds: got '9223372036854775808,'; expected"),
        (["--seeds", "0-2,1"], "--seeds: 1 is given twice"),
        (["--seeds", "1,1"], "--seeds: 1 is given twice"),
        (["--methods", "oracle", "--scenarios", "dirichlet"], "--methods: none of them can run in these scenarios"),
        (["--clients", "1000"], "digits"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], words: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert words in refused("compare", "--output", "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_ablation_differs_from_disue_in_one_or_two_things_and_every_cell_of_it_can_run(tmp_path: Path) -> None:
    labels = preset("ablation").methods
    cells = make_cells(labels, ["label-groups"], [0], ["digits"], 8, parse_assignments(QUICK[:-1]), tmp_path)
    configs = {cell.label: cell.config.to_flower() for cell in cells}
    for label, config in configs.items():
        check_names(RunConfig.from_flower(config))
        if label.startswith("disue:"):
            asked = label.count(":")
            changed = [key for key in config if config[key] != configs["disue"][key]]
            assert len(changed) == asked, label
    assert len({cell.name for cell in cells}) == len(labels)


METHOD_KEYS = [key for key in RunConfig.complete().declared_keys() if key not in shared_keys()]


@pytest.mark.parametrize("key", METHOD_KEYS)
def test_every_key_that_a_method_may_set_can_be_set(tmp_path: Path, key: str) -> None:
    default = RunConfig().to_flower()[key]
    value = str(default).lower() if isinstance(default, bool) else default
    (cell,) = make_cells([f"disue:{key}={value}:teacher=mean"], ["rotation"], [0], ["digits"], 8, {}, tmp_path)
    assert cell.config.to_flower() == RunConfig(scenario="rotation", teacher="mean", report=False).to_flower() | (
        {} if key == "teacher" else {key: default}
    )


def test_the_value_of_a_setting_may_have_a_colon(tmp_path: Path) -> None:
    label = "disue:proxy=dataset:mnist:teacher=mean"
    (cell,) = make_cells([label], ["rotation"], [0], ["digits"], 8, {}, tmp_path)
    assert (cell.config.proxy, cell.config.teacher) == ("dataset:mnist", "mean")


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; name another directory"):
        compare(**options(tmp_path))


def test_what_is_not_shared_by_all_methods_may_be_set_for_one() -> None:
    keys = RunConfig().to_flower().keys()
    assert keys >= shared_keys()
    assert set(METHOD_KEYS) >= {"prototypes", "aggregator", "privacy", "teacher", "proxy-size", "robust", "cfl-eps1"}
    assert not {"seed", "dataset", "alpha", "batch-size", "local-epochs", "fraction-train"} & set(METHOD_KEYS)


def test_where_every_run_fails_there_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*QUICK, "learning-rate=1e30"]
    wanted = options(tmp_path / "out", methods="fedavg", scenarios="label-groups", seeds="7,", assignments=settings)
    with pytest.raises(FederationError, match="1 of 1 runs failed, the first was digits-label-groups-fedavg-seed7"):
        compare(**wanted)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cells"]
    printed = capsys.readouterr().out
    assert "failed: min-success-fraction: 0 of 6 clients" in printed
    assert "are in" not in printed


def test_what_is_doubtful_is_said_once_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disue_cli.commands.compare.run_cells", lambda cells, workers, on_done: [])
    compare(**options(tmp_path / "out", methods="fedavg,local", assignments=[*QUICK, "num-groups=9"]))
    printed = capsys.readouterr().out
    assert printed.count("warning: num-groups: got 9; there are 6 clients, so 3 of the groups are empty\n") == 1
    assert printed.count("warning: num-groups: got 9; scenario 'dirichlet' plants no groups") == 1


def test_an_error_of_any_kind_costs_one_run_only(tmp_path: Path) -> None:
    blocked = tmp_path / "out/cells/digits-label-groups-local-seed7"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the run directory should be")
    with pytest.raises(FederationError, match="1 of 2 runs failed, the first was digits-label-groups-local-seed7"):
        compare(**options(tmp_path / "out", methods="local,fedavg", scenarios="label-groups", seeds="7,", workers=1))
    assert [row["method"] for row in rows_of(tmp_path / "out")] == ["fedavg"]


def test_a_run_that_no_client_evaluated_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(tmp_path / "out", methods="fedavg", scenarios="iid", seeds="7,")
    compare(**wanted)
    cell = tmp_path / "out/cells/digits-iid-fedavg-seed7"
    for name in ("summary.json", "metrics.jsonl"):
        lines = [json.loads(line) for line in (cell / name).read_text().splitlines()] if "jsonl" in name else None
        rows = lines or [json.loads((cell / name).read_text())]
        (cell / name).write_text("\n".join(json.dumps(row | {"expert_accuracy": None}) for row in rows) + "\n")
    compare(**wanted)
    assert rows_of(tmp_path / "out")[0]["expert_accuracy"] == ""

    told = json.loads((cell / "summary.json").read_text()) | json.loads((cell / "cell.json").read_text())

    def ends_without(cells, workers, on_done):  # type: ignore[no-untyped-def]
        on_done(cells[0], told)
        raise KeyboardInterrupt

    (cell / "cell.json").unlink()
    monkeypatch.setattr("disue_cli.commands.compare.run_cells", ends_without)
    with pytest.raises(KeyboardInterrupt):
        compare(**wanted)


def test_two_comparisons_do_not_share_a_directory(comparison: Path) -> None:
    with locked(comparison), pytest.raises(ConfigError, match="another comparison is running in"):
        compare(**options(comparison))


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out" / "cells").mkdir(parents=True)
    (tmp_path / "out" / "cells" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match=r"\.lock' is a link; remove it"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_cell_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "cells").mkdir(parents=True)
    cell = Cell("digits", "label-groups", "fedavg", RunConfig.from_flower(FAST), 2, tmp_path / "out")
    cell.directory.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the run directory" in str(cells.run_cell(cell))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_cell_that_was_stopped_or_is_held_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.from_flower(FAST | {"method": "fedavg", "train-examples": 20, "test-examples": 10})
    cell = Cell("digits", "label-groups", "fedavg", config, 2, tmp_path)
    with exclusive(cell.directory):
        assert str(cells.run_cell(cell)).startswith(f"--output: '{cell.directory}' is in use")
        assert cell.directory.exists()
    monkeypatch.setattr(Checkpointing, "after_round", lambda *_: ask_to_stop(cell.directory))
    assert str(cells.run_cell(cell)) == "the run was stopped: it was asked to end after round 1"
    assert cell.summary() is None


def test_runs_of_other_source_code_are_pointed_out(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison / "cells/digits-dirichlet-fedavg-seed7/cell.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"source": "older"}))
    try:
        compare(**options(comparison))
    finally:
        path.write_text(text)
    assert "some of the runs are older than the present code" in capsys.readouterr().out


def test_labels_that_would_share_a_directory_are_refused(tmp_path: Path) -> None:
    labels = ["disue:blend=0.5", "disue:blend=0.50"]
    assert len(make_cells(labels, ["iid"], [7], ["digits"], 6, {}, tmp_path)) == 2
    with pytest.raises(ConfigError, match="is given twice"):
        make_cells(["disue:signature=a b", "disue:signature=a_b"], ["iid"], [7], ["digits"], 6, {}, tmp_path)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.e2e
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_leaves_no_process_and_goes_on_when_repeated(tmp_path: Path, how: int) -> None:
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "from disue_cli.main import main; main()", "compare", "--methods", "fedavg,local", "--seeds", "4",
               "--clients", "6", "--workers", "2", "--output", "out"]  # fmt: skip
    for assignment in [*QUICK, "num-server-rounds=10"]:
        command += ["--set", assignment]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/8]"):
            break
    workers = children_of(process)
    process.send_signal(how)
    assert process.wait(timeout=30) != 0
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    finished = len(list((tmp_path / "out/cells").glob("*/summary.json")))
    assert 2 <= finished < 8
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"8 runs, {finished} of them finished before" in again.stdout
    assert len(rows_of(tmp_path / "out")) == 8


def made(seed: int, label: str = "fedavg", dataset: str = "digits", root: Path = Path("x")) -> Cell:
    method, *own = label.split(":")
    config = RunConfig.from_flower({"seed": seed, "method": method} | parse_assignments(own))
    return Cell(dataset, "iid", label, config, 6, root)


def summary_of(universal: float, expert: float, seconds: float = 1.0, **changes: Any) -> dict[str, Any]:
    names = ("personal_accuracy", "worst_decile_accuracy", "num_clusters", "ari", "client_steps", "personal_steps")
    timings = {f"seconds_{phase}": seconds / 4 for phase in ("local", "clustering", "distillation", "evaluation")}
    timings |= {"wall_seconds": seconds, "cpu_seconds": seconds}
    values = dict.fromkeys((*names, "bytes_up", "bytes_down"), 2)
    return {"universal_accuracy": universal, "expert_accuracy": expert} | values | timings | changes


def test_the_table_has_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    finished = [
        (made(0), summary_of(0.5, 0.6)),
        (made(1), summary_of(0.7, 0.6)),
        (made(0, "oracle"), summary_of(0.1, 0.9)),
        (made(1, "oracle"), summary_of(0.2, 0.95)),
        (made(0, "disue"), summary_of(0.6, 0.8)),
        (made(1, "disue"), summary_of(0.65, 0.9)),
    ]
    write_table(finished, tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0]: dict(zip(table[0], row, strict=False)) for row in table[2:5]}
    assert rows["fedavg"]["universal"] == "0.600 ± 0.141"
    assert rows["disue"]["universal"] == "**0.625 ± 0.035**"
    assert rows["disue"]["expert"] == "**0.850 ± 0.071**"
    assert rows["oracle"]["expert"] == "0.925 ± 0.035"  # the best, and not bold: it is told the groups
    difference = [0.8 - 0.6, 0.9 - 0.6]
    assert rows["disue"]["expert − fedavg"] == f"+{np.mean(difference):.3f} ± {np.std(difference, ddof=1):.3f}"
    assert rows["disue"]["expert − oracle"] == "-0.075 ± 0.035"
    assert rows["disue"]["universal − fedavg"] == "+0.025 ± 0.106"


def test_nobody_who_is_told_the_groups_is_best(tmp_path: Path) -> None:
    finished = [(made(0), summary_of(0.5, 0.6)), (made(0, "disue:clusterer=oracle"), summary_of(0.9, 0.9))]
    write_table(finished, tmp_path / "table.md")
    assert "**0.500**" in (tmp_path / "table.md").read_text()
    assert "**0.900**" not in (tmp_path / "table.md").read_text()


def test_lost_updates_are_named(tmp_path: Path) -> None:
    finished = [
        (made(0), summary_of(0.5, 0.6, clients_failed=3, clients_rejected=1)),
        (made(1), summary_of(0.5, 0.6, clients_failed=1)),
        (made(0, "local"), summary_of(0.5, 0.6)),
    ]
    write_table(finished, tmp_path / "table.md")
    assert "Seeds 0, 1. fedavg: 5 updates failed or were rejected.\n" in (tmp_path / "table.md").read_text()


def test_differences_are_taken_seed_by_seed() -> None:
    assert paired({1: 0.5, 2: 0.9, 3: 1.0}, {2: 0.4, 1: 0.25}) == [0.25, 0.5]


def test_the_time_left_is_that_of_cells_alike() -> None:
    finished = [
        (made(0), summary_of(0, 0, seconds=10.0)),
        (made(1), summary_of(0, 0, seconds=20.0)),
        (made(0, "disue"), summary_of(0, 0, seconds=100.0)),
        (made(0, "disue", "mnist"), summary_of(0, 0, seconds=1000.0)),
    ]
    assert seconds_left([made(2)], [], 1) is None
    assert seconds_left([made(2)], finished, 1) == pytest.approx(15.0)
    assert seconds_left([made(2), made(2, "disue")], finished, 2) == pytest.approx(57.5)
    assert seconds_left([made(2, "local")], finished, 1) == pytest.approx(130.0 / 3)
    assert seconds_left([made(2, "local", "mnist")], finished, 1) == pytest.approx(1000.0)
    assert seconds_left([made(2, "local", "svhn")], finished, 1) == pytest.approx(1130.0 / 4)


def test_names_of_directories_are_safe(tmp_path: Path) -> None:
    cell = replace(made(0, root=tmp_path), label="disue:data-dir=../../etc:num-clusters=3")
    assert cell.directory.parent == tmp_path
    assert cell.name == "digits-iid-disue_data-dir=.._.._etc_num-clusters=3-seed0"


def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells(["fedavg"], ["iid"], [7, 8, 9], ["digits"], 6, {"num-server-rounds": 500}, tmp_path)
    started = time.monotonic()

    def kill_soon() -> None:
        while not list(tmp_path.glob("*/metrics.jsonl")):
            time.sleep(0.1)
        multiprocessing.active_children()[0].kill()

    thread = threading.Thread(target=kill_soon)
    thread.start()
    with pytest.raises(FederationError, match="a worker process died"):
        run_cells(cells, 2, lambda cell, result: None)
    thread.join()
    assert time.monotonic() - started < 60
