"""A finished run, loaded and used in Python."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from disue import load_run
from disue.data import build_federation
from disue.errors import ConfigError, DataError
from disue.metrics import evaluate
from disue.models import MODELS, Classifier, Shape, build_model
from server_app.config import RunConfig
from strategies.distillation.teachers import TeacherInputs, discriminant_teacher

CLIENTS = 6


def wide(shape: Shape, num_outputs: int) -> Classifier:
    """A network of more features than a covariance is of."""
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 512), nn.ReLU()), 512, num_outputs)


def raw_test_images(run_directory: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Return the pixels of the run's global test set, as floats in 0..1, and their labels."""
    config = RunConfig.from_flower({"output-dir": str(run_directory)})
    federation = build_federation(config, CLIENTS)
    chosen = federation.dataset.test[torch.from_numpy(federation.test_indices)]
    return chosen.x.float().numpy() / federation.dataset.maximum, chosen.y


def test_its_models_are_as_good_as_the_run_says(finished: Path) -> None:
    run = load_run(finished)
    x, y = raw_test_images(finished)
    shares = run.universal(x)
    assert shares.shape == (len(y), 10)
    assert torch.allclose(shares.sum(dim=1), torch.ones(len(y)))
    right = [name == str(int(label)) for name, label in zip(run.universal.classify(x), y, strict=True)]
    assert sum(right) / len(right) == pytest.approx(run.summary["universal_accuracy"])
    network = build_model("mlp", run.task.shape, 10)
    network.load_state_dict(load_file(finished / "experts/expert-1.safetensors"))
    assert torch.allclose(run.expert(1)(x), torch.softmax(network(run.task.normalise(torch.from_numpy(x))), 1))
    assert run.model("0").name == "0"
    with (finished / "clients.csv").open() as file:
        assert run.clusters == {row["client"]: int(row["cluster"]) for row in csv.DictReader(file)}
    assert (run.experts, run.universals) == (["0", "1"], ["universal"])
    assert (run.config.method, run.config.num_clusters, run.task.num_classes) == ("disue", 2, 10)


def test_the_gate_chooses_as_the_teacher_does(finished: Path) -> None:
    run = load_run(finished)
    assert run.gate is not None
    x, _ = raw_test_images(finished)
    densities = run.gate.log_densities(run.task.normalise(torch.from_numpy(x)), run.task)
    inputs = TeacherInputs(
        lambda _: torch.zeros(2, len(x), 10), torch.ones(2, 10), lambda: densities, lambda: densities
    )
    weights = discriminant_teacher(inputs).weights
    names = list(run.gate.experts)
    assert run.choose(x) == [names[i] for i in weights[:, :, 0].argmax(dim=0).tolist()]
    assert set(run.choose(x)) == {"0", "1"}


def whole(covariance: np.ndarray) -> np.ndarray:
    return covariance


def four_longest_axes(covariance: np.ndarray) -> np.ndarray:
    """Return what of a covariance is in its four longest principal axes."""
    values, vectors = np.linalg.eigh(covariance)
    axes: np.ndarray = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].T
    return axes


@pytest.mark.parametrize(("early", "size", "told"), [(512, 128, whole), (0, 64, four_longest_axes)])
def test_the_gate_knows_the_clients_examples_and_that_no_label_shares_are_in_calibrated_experts(
    finished: Path, run: Callable[..., Any], early: int, size: int, told: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Of the last round, in which all clients took part: all examples of a cluster together."""
    loaded = load_run(finished if early else run(clients=CLIENTS, num_clusters=2, early_features=0).directory)
    assert loaded.gate is not None
    assert [space.early for space in loaded.gate.spaces] == [min(early, size)]
    assert [space.model for space in loaded.gate.spaces] == ["mlp"]
    federation = build_federation(loaded.config, CLIENTS)
    squares = np.zeros((size, size))
    for name, own in loaded.gate.experts.items():
        parts = [federation.client(i).train for i in range(CLIENTS) if loaded.clusters[f"client-{i}"] == int(name)]
        x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
        counts = torch.bincount(y, minlength=10).float()
        assert torch.equal(own.label_counts, counts.unsqueeze(0))
        assert own.log_prior is not None
        assert torch.allclose(own.log_prior.exp(), torch.full((10,), 0.1))
        features = loaded.gate.features(own.space, x, loaded.task)
        for label in counts.nonzero().flatten().tolist():
            assert torch.allclose(own.points[0, label], features[y == label].mean(dim=0), atol=1e-4)
        for part in parts:
            of_client = loaded.gate.features(own.space, part.x, loaded.task).double().numpy()
            for label in part.y.unique().tolist():
                rows = of_client[part.y.numpy() == label]
                off = rows.mean(axis=0) - own.points[0, label].double().numpy()
                squares += len(rows) * (told(np.cov(rows.T, bias=True)) + np.outer(off, off))
    within = squares / sum(len(federation.client(i).train) for i in range(CLIENTS))
    expected = 0.9 * within + 0.1 * np.trace(within) / len(within) * np.eye(len(within))
    assert loaded.gate.spaces[0].covariance is not None
    np.testing.assert_allclose(loaded.gate.spaces[0].covariance.numpy(), expected, atol=1e-3 * expected.max())
    assert loaded.gate.signature == "initial-prototypes"
    assert loaded.gate.clusters == loaded.clusters


@pytest.mark.parametrize("privacy", ["plain", "secure"])
def test_a_network_of_many_features_is_gated_by_a_projection_of_them(run, privacy: str) -> None:  # type: ignore[no-untyped-def]
    with MODELS.scope():
        MODELS.register("wide")(wide)
        result = run(clients=6, model="wide", num_clusters=2, privacy=privacy, early_features=0)
        loaded = load_run(result.directory)
        assert loaded.gate is not None
        (space,) = loaded.gate.spaces
        assert space.covariance is not None
        assert space.covariance.shape == (128, 128)
        assert {own.points.shape for own in loaded.gate.experts.values()} == {(1, 10, 128)}
        x, _ = raw_test_images(result.directory)
        chosen = loaded.choose(x)
        assert len(chosen) == len(x)
        assert set(chosen) <= {"0", "1"}
        if privacy == "plain":
            assert {tuple(told.shape) for told in loaded.gate.descriptions.values()} == {(10, 513)}


def test_an_expert_that_does_not_exist_is_refused(finished: Path) -> None:
    run = load_run(finished)
    with pytest.raises(ConfigError, match="expert: '7' does not exist; this run has 0, 1"):
        run.expert(7)
    with pytest.raises(
        ConfigError, match=r"'univrsal' does not exist \(did you mean 'universal'\?\); choose from univ"
    ):
        run.model("univrsal")


def test_a_run_without_experts_has_no_gate(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=4, method="fedavg", num_server_rounds=1)
    assert not (result.directory / "gate.safetensors").exists()
    loaded = load_run(result.directory)
    assert loaded.experts == []
    test = build_federation(result.config, 4).global_test()
    network = loaded.universal.module.network
    found = evaluate(loaded.task, network, test, torch.device("cpu"))
    assert found.metrics["accuracy"] == result.summary["universal_accuracy"]
    with pytest.raises(
        ConfigError, match=r"'auto' needs a gate and this run \(method 'fedavg'\) has none; .*universal"
    ):
        loaded.choose(np.zeros((1, 8, 8)))
    with pytest.raises(ConfigError, match="expert: '0' does not exist; this run has none, use 'universal'"):
        loaded.expert(0)


def test_architectures_have_their_own_experts_and_spaces(run) -> None:  # type: ignore[no-untyped-def]
    architectures = {"model": "mlp", "client_models": "mlp,cnn"}
    result = run(clients=6, num_server_rounds=1, num_clusters=1, early_features=0, **architectures)
    loaded = load_run(result.directory)
    assert (loaded.universals, loaded.experts) == (["universal", "universal-cnn"], ["0", "0-cnn"])
    assert loaded.expert("0-cnn").architecture == loaded.model("universal-cnn").architecture == "cnn"
    assert loaded.gate is not None
    spaces = {name: loaded.gate.spaces[own.space].model for name, own in loaded.gate.experts.items()}
    assert spaces == {"0": "mlp", "0-cnn": "cnn"}
    assert set(loaded.choose(np.random.default_rng(0).random((20, 8, 8)))) == {"0"}


def damage(directory: Path, what: str) -> None:
    if what == "truncated":
        whole = (directory / "universal.safetensors").read_bytes()
        (directory / "universal.safetensors").write_bytes(whole[: len(whole) // 2])
    elif what == "another network":
        save_file({"x": torch.zeros(2)}, directory / "universal.safetensors", {"disue": json.dumps({"model": "mlp"})})
    elif what == "foreign":
        save_file({"x": torch.zeros(2)}, directory / "universal.safetensors")
    elif what == "not a number":
        state = load_file(directory / "universal.safetensors")
        state["head.bias"][0] = torch.nan
        save_file(state, directory / "universal.safetensors", {"disue": json.dumps({"model": "mlp"})})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "is damaged ("),
        ("another network", "does not fit (its parameters are not those of model 'mlp' as it is here); restore"),
        ("foreign", "is damaged (it says nothing of DisUE)"),
        ("not a number", "is damaged ('head.bias' has values that are not finite)"),
    ],
)
def test_a_damaged_model_is_named(spoilt: Path, what: str, said: str) -> None:
    damage(spoilt, what)
    with pytest.raises(DataError) as caught:
        _ = load_run(spoilt).universal
    assert f"'{spoilt / 'universal.safetensors'}' {said}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", None, "this run is not finished (it goes on, or was ended)"),
        ("summary.json", "{", "summary.json' is damaged"),
        ("config.toml", None, "there is no run here (config.toml is missing)"),
        ("config.toml", "[run]\n", "config.toml' is damaged"),
        ("config.toml", "[run]\nalpha = 0.1\n", "config.toml' is damaged"),
        ("universal.safetensors", None, "universal.safetensors' is missing"),
        ("gate.safetensors", "x", "gate.safetensors' is damaged"),
        ("clients.csv", "x\n1\n", "clients.csv' is damaged (no column"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(spoilt: Path, name: str, content: str | None, said: str) -> None:
    (spoilt / name).unlink() if content is None else (spoilt / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load_run(spoilt)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_a_run_that_ended_early_has_models_or_is_refused(spoilt: Path, status: str) -> None:
    (spoilt / "summary.json").write_text(json.dumps({"status": status, "error": "too few"}))
    assert load_run(spoilt).universals == ["universal"]
    (spoilt / "universal.safetensors").unlink()
    with pytest.raises(DataError, match=rf"is not finished \(it {status}: too few\); go on with it \(--resume\)"):
        load_run(spoilt)


def test_importing_disue_does_not_import_torch() -> None:
    code = "import sys, disue; assert 'torch' not in sys.modules and 'load_run' in disue.__all__"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
