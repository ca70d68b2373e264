"""`disue assign`: new clients join the cluster of those whose data are like theirs, by the rule that is named."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client_app.describe import initial_prototypes
from disue import load_run
from disue.data import build_federation
from disue.metrics import evaluate
from disue.models import build_model
from disue.runs.reading import Run
from disue.tasks.classification import log_prior
from disue_cli.commands.assign import place, read_new, uncentred_prototypes

CPU = torch.device("cpu")
CLIENTS = 6


def data_of(run: Run, client: int) -> dict[str, np.ndarray]:
    """Return the test data of one of the run's clients, as a file of its own would hold them."""
    federation = build_federation(run.config, CLIENTS)
    chosen = federation.dataset.test[torch.from_numpy(federation.test_parts[client])]
    return {"x": chosen.x.float().numpy() / federation.dataset.maximum, "y": chosen.y.numpy()}


@pytest.fixture(scope="module")
def files(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An .npz file for each client of the run."""
    folder, run = tmp_path_factory.mktemp("clients"), load_run(finished)
    for client in range(CLIENTS):
        np.savez(folder / f"{client}.npz", **data_of(run, client))
    return [folder / f"{client}.npz" for client in range(CLIENTS)]


def test_a_client_joins_the_nearest_centre_of_the_runs_own_signatures(finished: Path, files: list[Path]) -> None:
    run = load_run(finished)
    initial = build_model("mlp", run.task.shape, 10, run.config.seed)
    federation = build_federation(run.config, CLIENTS)
    vectors = {
        f"client-{i}": initial_prototypes(initial, federation.client(i).train, CPU, run.task).flatten()
        for i in range(CLIENTS)
    }
    centres = {
        k: torch.stack([vectors[name] for name, cluster in run.clusters.items() if cluster == k]).mean(dim=0)
        for k in (0, 1)
    }
    for client, file in enumerate(files):
        new = read_new(run, file)
        own = initial_prototypes(initial, new.examples, CPU, run.task).flatten()
        found = place(run, new)
        assert found.cluster == min(centres, key=lambda k: float((own - centres[k]).norm()))
        for k, centre in centres.items():
            assert found.similarities[k] == pytest.approx(float(own @ centre), abs=1e-5)
        assert found.cluster == run.clusters[f"client-{client}"]


def test_it_prints_the_rule_and_how_good_each_model_is(
    finished: Path, files: list[Path], said: Callable[..., tuple[str, str]]
) -> None:
    run = load_run(finished)
    out, _ = said("assign", finished, files[1])
    cluster = run.clusters["client-1"]
    federation = build_federation(run.config, CLIENTS)
    test = federation.client(1).test
    assert out.startswith(
        f"{len(test)} labelled images: cluster {cluster}, by the run's signature 'initial-prototypes'"
    )
    lines = {re.split(r"[│┃]", line)[1].split(" (")[0].strip(): line for line in out.splitlines() if "│" in line}
    assert lines.keys() == {"universal", "expert 0", "expert 1"}
    assert "(joins)" in lines[f"expert {cluster}"]
    universal = evaluate(run.task, run.universal.module.network, test, CPU).metrics["accuracy"]
    assert f" {universal:.3f} " in lines["universal"]
    counts = torch.bincount(test.y, minlength=10)
    for k in (0, 1):
        network = run.expert(k).module.network
        assert run.gate is not None
        shift = log_prior(counts) - run.gate.experts[str(k)].log_prior
        for own in (None, shift):
            accuracy = evaluate(run.task, network, test, CPU, own).metrics["accuracy"]
            assert f" {accuracy:.3f} " in lines[f"expert {k}"]


def test_a_folder_of_classes_is_the_same_client(finished: Path, files: list[Path], tmp_path: Path) -> None:
    run = load_run(finished)
    arrays = dict(np.load(files[0]))
    for i, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
        (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(tmp_path / "data" / str(label) / f"{i}.png")
    folder, array = place(run, read_new(run, tmp_path / "data")), place(run, read_new(run, files[0]))
    assert folder.cluster == array.cluster
    assert folder.similarities == pytest.approx(array.similarities, abs=0.01)


def test_by_what_is_told_of_classes_images_count_as_the_gate_has_them(
    run: Callable[..., object], tmp_path: Path
) -> None:
    result = run(clients=CLIENTS, num_clusters=2, num_server_rounds=1, signature="last-layer")
    loaded = load_run(result.directory)  # type: ignore[attr-defined]
    data = data_of(loaded, 0)
    np.savez(tmp_path / "own.npz", **data)
    found = place(loaded, read_new(loaded, tmp_path / "own.npz"))
    assert loaded.gate is not None
    x = loaded.task.normalise(torch.from_numpy(data["x"]))
    shares = []
    for i, label in enumerate(data["y"]):
        own = loaded.gate.log_densities(x[i : i + 1], loaded.task)[:, 0, int(label)].double().numpy()
        shares.append(np.exp(own - own.max()) / np.exp(own - own.max()).sum())
    mean = dict(zip(map(int, loaded.gate.experts), np.mean(shares, axis=0), strict=True))
    assert found.similarities == pytest.approx(mean, abs=1e-5)
    assert found.cluster == max(mean, key=mean.__getitem__)


def test_a_client_of_a_run_of_format_1_is_described_as_in_that_run() -> None:
    """With prototypes alone, as its clients were: one of them is nearer to itself than to any other."""
    stored = Path(__file__).parents[1] / "stored_runs" / "format-1" / "run"
    loaded = load_run(stored)
    assert loaded.gate is not None
    initial = build_model("mlp", loaded.task.shape, 10, loaded.config.seed)
    federation = build_federation(loaded.config, 4)
    for i in range(4):
        told = uncentred_prototypes(initial, federation.client(i).train, CPU, loaded.task, True)
        torch.testing.assert_close(told, loaded.gate.descriptions[f"client-{i}"])


def test_without_labels_the_gate_decides(finished: Path, files: list[Path], tmp_path: Path) -> None:
    run = load_run(finished)
    x = np.load(files[2])["x"]
    np.savez(tmp_path / "x.npz", x=x)
    found = place(run, read_new(run, tmp_path / "x.npz"))
    chosen = run.choose(x)
    assert found.similarities == {k: chosen.count(str(k)) / len(chosen) for k in (0, 1)}
    assert "there are no labels" in found.rule


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (
            {"signature": "last-layer"},
            "what the clusters' clients told of their classes (the run's signature 'last-layer'",
        ),
        ({"method": "pacfl"}, "the run's signature 'subspace'"),
        ({"method": "stocfl", "num_groups": 2}, "the run's signature 'anchor-gradient'"),
        ({"method": "ifca", "num_groups": 2}, "the lowest loss of an expert on these images (as the run's clients"),
        ({"method": "fesem", "num_groups": 2}, "the lowest loss of an expert on these images (what method 'fesem'"),
    ],
)
def test_other_runs_use_what_they_have(
    run: Callable[..., object], tmp_path: Path, settings: dict[str, object], rule: str
) -> None:
    result = run(clients=CLIENTS, num_clusters=2, num_server_rounds=1, **settings)
    loaded = load_run(result.directory)  # type: ignore[attr-defined]
    joined = []
    for client in range(CLIENTS):
        np.savez(tmp_path / "own.npz", **data_of(loaded, client))
        found = place(loaded, read_new(loaded, tmp_path / "own.npz"))
        assert found.rule.startswith(rule)
        joined.append(found.cluster == loaded.clusters[f"client-{client}"])
    assert sum(joined) >= CLIENTS - 1  # a test part is small


def test_bad_input_is_one_line(
    finished: Path, run: Callable[..., object], tmp_path: Path, refused: Callable[..., str]
) -> None:
    np.savez(tmp_path / "class.npz", x=np.zeros((4, 8, 8)), y=np.array([0, 1, 2, 12]))
    np.savez(tmp_path / "long.npz", x=np.zeros((4, 8, 8)), y=np.zeros(3, dtype=int))
    np.savez(tmp_path / "good.npz", x=np.zeros((4, 8, 8)), y=np.zeros(4, dtype=int))
    np.savez(tmp_path / "kind.npz", x=np.zeros((4, 8, 8), dtype=np.uint16), y=np.zeros(4, dtype=int))
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 8)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed" / "3").mkdir(parents=True)
    for name in ("mixed/3/a.png", "mixed/b.png"):
        Image.new("L", (9, 9)).save(tmp_path / name)
    for name, what in [
        ("class.npz", "class.npz': classes that this run does not have: '12'; it has '0', '1'"),
        ("long.npz", "y is int64 (3,); expected 4 integers, one for each image"),
        ("kind.npz", f"disue: '{tmp_path / 'kind.npz'}': x is uint16; expected uint8"),
        ("nothing", "nothing' is neither a folder of images nor an .npz file"),
        ("empty", "empty' has no images"),
        ("mixed", "mixed': 'b.png' is in no class; expected a folder of images for each class"),
    ]:
        assert what in refused("assign", str(finished), str(tmp_path / name))
    for method, data, what in [
        ("fedavg", "good.npz", "method: 'fedavg' has one model for all clients and no clusters to join"),
        ("local", "x.npz", "method: 'local' keeps nothing that assigns unlabelled images; name their classes"),
    ]:
        result = run(clients=2, method=method, num_server_rounds=1)
        assert what in refused("assign", str(result.directory), str(tmp_path / data))  # type: ignore[attr-defined]


def test_what_is_left_out_of_a_folder_is_said_once(
    finished: Path, files: list[Path], tmp_path: Path, said: Callable[..., tuple[str, str]], messages: list[str]
) -> None:
    data = np.load(files[0])
    for i, (image, label) in enumerate(zip(data["x"], data["y"], strict=True)):
        (tmp_path / "kept" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(tmp_path / "kept" / str(label) / f"{i}.png")
    (tmp_path / "new").mkdir()
    for folder in (tmp_path / "kept").iterdir():
        (tmp_path / "new" / folder.name).symlink_to(folder)
    (tmp_path / "new" / "photo.heic").write_bytes(b"")
    out, _ = said("assign", finished, tmp_path / "new")
    assert f"{len(data['y'])} labelled images" in out
    assert messages == [f"'{tmp_path / 'new'}': left out: files with the ending .heic (1: 'photo.heic')"]
