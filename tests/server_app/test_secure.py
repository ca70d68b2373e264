"""Runs with privacy=secure against the same runs without, and what the server gets to see of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file
from tests_support import RecordingGrid

from client_app import app as client
from client_app import secagg
from client_app.app import app as client_app
from client_app.release import policy, sketched
from disue.errors import ConfigError, FederationError
from disue.privacy.secagg import to_words
from disue_cli.engines.inline import simulated_nodes
from server_app.checks import check_names, check_sizes
from server_app.config import RunConfig
from server_app.run import execute

SAME = {"clients": 9, "prototypes": "cluster", "num_server_rounds": 3, "local_epochs": 2, "seed": 4}
NO_AXES = {"teacher": "prototype", "calibration_epochs": 0}
"""What makes nothing of the axes that clients tell in plain runs only."""
ACCURACIES = ("universal_accuracy", "expert_accuracy", "personal_accuracy", "worst_decile_accuracy")
ROUNDED = ("expert_accuracy", "personal_accuracy", "worst_decile_accuracy")
"""What clients tell; the server measures the universal expert itself."""
HALF_A_STEP = 0.5 / 10 + 1e-9  # of a client with fewer than 20 test examples


@pytest.mark.parametrize(
    "settings",
    [
        {"initialisation": "blend"},
        {"initialisation": "learned"},
        {
            "initialisation": "blend",
            "signature": "last-layer",
            "fraction_train": 0.7,
            "scenario": "rotation",
            "num_groups": 2,
            "num_clusters": 2,
            "clients": 14,
            "max_fit": 0.0,  # which bounds single covariances
        },
        {"method": "fedavg"},
    ],
    ids=["descriptions", "learned", "updates", "fedavg"],
)
def test_secure_equals_plain(run, settings: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    # Fits are rounded. Where newcomers start elsewhere than their cluster, the mean of its starts is unweighted.
    near_models = 0.01 if settings.get("initialisation") == "learned" or "fraction_train" in settings else 1e-4
    plain = run(**(SAME | NO_AXES | settings))
    secure = run(**(SAME | NO_AXES | settings), privacy="secure", sketch_size=256)
    for before, after in zip(plain.rows, secure.rows, strict=True):
        assert after["num_clusters"] == before["num_clusters"]
        assert after["ari"] == before["ari"]
        for key in (*ACCURACIES, "universal_loss", "train_loss"):
            near = HALF_A_STEP if key in ROUNDED else max(1e-3, near_models)
            assert after[key] == (before[key] if before[key] is None else pytest.approx(before[key], abs=near)), key
        for key in ("clients_ok", "client_steps"):
            assert after[key] == before[key]
    for path in plain.directory.rglob("*.safetensors"):
        if path.parent.name == "checkpoint" or path.name in ("portrait.safetensors", "gate.safetensors"):
            continue
        tensors, others = (
            load_file(directory / path.relative_to(plain.directory))
            for directory in (plain.directory, secure.directory)
        )
        for name, tensor in tensors.items():
            torch.testing.assert_close(others[name], tensor, rtol=0.0, atol=near_models)


def vectors_in(message: Message) -> list[np.ndarray]:
    return [
        array.numpy().astype(np.float64).ravel()
        for record in message.content.array_records.values()
        for array in record.values()
    ]


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(np.corrcoef(a, b)[0, 1])) if min(a.std(), b.std()) > 0 else 0.0


def test_nothing_single_is_ever_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No number and no vector that the server receives is, or goes with, one client's own."""
    own: list[torch.Tensor] = []
    models: list[torch.Tensor] = []
    told: list[torch.Tensor] = []
    keep, make = sketched.keep, policy.make_signature

    def watch(vector: torch.Tensor, *arguments: Any) -> Any:
        own.append(vector)
        return keep(vector, *arguments)

    def watch_signature(*arguments: Any) -> Any:
        told.append(make(*arguments))
        return told[-1]

    monkeypatch.setattr(sketched, "keep", watch)
    monkeypatch.setattr(policy, "make_signature", watch_signature)
    values = {"model": "mlp", "num-server-rounds": 2, "local-epochs": 1, "distill-steps": 5, "report": False}
    config = RunConfig.from_flower(values | {"privacy": "secure", "output-dir": str(tmp_path / "run")})
    grid = RecordingGrid(client_app, config.to_flower(), simulated_nodes(6))
    execute(config, grid)
    assert len(own) == len(told) == 12
    classes, features = told[0].prototypes.shape
    size = 3 + classes * (1 + features)
    secrets = [vector.numpy() for vector in own]  # as they are sent; and their parts, in the units that they have
    for vector, signature in zip(own, told, strict=True):
        models.append(vector[size:] / vector[0])
        secrets += [models[-1].numpy(), signature.prototypes.numpy().ravel(), signature.label_counts.numpy()]
        secrets.append(to_words(vector).view(np.int64).astype(np.float64))
    kinds = [message.metadata.message_type for message in grid.received]
    assert kinds.count("query.mask") == kinds.count("query.unmask") == 12
    for message in grid.received:
        assert not message.has_error()
        for vector in vectors_in(message):
            for secret in secrets:
                length = min(len(vector), len(secret))
                for cut in (secret[:length], secret[-length:]):
                    limit = 6.0 * length**-0.5  # six deviations of independent vectors
                    assert likeness(vector[:length], cut) < limit, message.metadata.message_type
        if message.metadata.message_type in ("query", "train"):
            for record in message.content.metric_records.values():
                assert record["num-examples"] == 0
                assert set(record) == {"num-examples", "group", "num-partitions"}
    masked = [vectors_in(message)[0] for message in grid.received if message.metadata.message_type == "query.mask"]
    for i, a in enumerate(masked):
        assert all(likeness(a, b) < 6.0 * len(a) ** -0.5 for b in masked[:i])
    sizes = {len(v) for m in grid.received if m.metadata.message_type == "query.describe" for v in vectors_in(m)}
    assert sizes == {config.sketch_size}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "feddf"},
            "method: got 'feddf'; the server gets sums only with privacy=secure, use fedavg, fedprox, fedlc",
        ),
        ({"method": "ifca"}, "method: got 'ifca'; the server gets sums only"),
        ({"method": "stocfl"}, "method: got 'stocfl'; the server gets sums only"),
        ({"method": "ccvr"}, "method: got 'ccvr'; the server gets sums only"),
        ({"dataset": "own"}, "classes: got ''; with privacy=secure clients do not tell theirs, name all of them"),
        ({"clusterer": "ifca"}, "clusterer: got 'ifca'; the server gets sums only"),
        ({"clusterer": "oracle"}, "clusterer: got 'oracle'; the server gets sums only"),
        (
            {"signature": "subspace"},
            "signature: got 'subspace'; the server gets sums only with privacy=secure, use last-layer",
        ),
        ({"aggregator": "median"}, "aggregator: got 'median'; the server gets sums only with privacy=secure, use mean"),
        ({"prototype-limit": 2.0}, "prototype-limit: got 2.0; the server gets sums only"),
        ({"robust": True}, "aggregator: got 'multi-krum'; the server gets sums only"),
        ({"clip-norm": 2.0}, "clip-norm: got 2.0; the server gets sums only with privacy=secure, use 0"),
        (
            {"client-models": "cnn,mlp"},
            "client-models: got 'mlp' beside model 'cnn'; privacy 'secure' needs one architecture",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_had_of_sums_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_names(RunConfig.from_flower({"privacy": "secure", **settings}))
    assert str(error.value).startswith(message)


def test_a_key_of_another_method_is_not_refused() -> None:
    check_names(RunConfig.from_flower({"privacy": "secure", "method": "fedavg", "prototype-limit": 2.0}))


def test_clusters_are_of_three_clients_at_least(run) -> None:  # type: ignore[no-untyped-def]
    config = RunConfig.from_flower({"privacy": "secure", "num-clusters": 3})
    with pytest.raises(
        ConfigError, match="num-clusters: got 3; 8 clients make at most 2 clusters of 3 \\(privacy=secure\\)"
    ):
        check_sizes(config, 8)
    check_sizes(config, 9)
    with pytest.raises(ConfigError, match="privacy: got 'secure'; there are 2 clients and a sum of 3 is the smallest"):
        check_sizes(RunConfig.from_flower({"privacy": "secure"}), 2)
    assert run(clients=7, privacy="secure", num_groups=3, num_server_rounds=1).summary["num_clusters"] <= 2


def test_noise_in_sketches_is_of_the_length_that_is_asked_for(run) -> None:  # type: ignore[no-untyped-def]
    runs = [run(clients=6, privacy="secure", sketch_noise=1.0, num_server_rounds=1) for _ in range(2)]
    gates = [load_file(one.directory / "gate.safetensors") for one in runs]
    first, second = (gate["descriptions"] for gate in gates)
    assert first.shape == (6, 1, 8)
    assert torch.equal(first, second)  # of a simulation; it is another for other clients, and not the sketch
    exact = load_file(run(clients=6, privacy="secure", num_server_rounds=1).directory / "gate.safetensors")[
        "descriptions"
    ]
    noise = first - exact
    assert 0.4 < float(noise.square().sum(dim=2).mean()) < 2.0
    assert float(torch.corrcoef(noise[:, 0]).fill_diagonal_(0.0).abs().max()) < 0.999


def test_a_client_that_is_started_anew_within_a_round_is_not_in_the_sum(run, monkeypatch, messages) -> None:  # type: ignore[no-untyped-def]
    share_out = secagg.share_out

    def restarted(request: Any, name: str, context: Any) -> Any:
        if name == "client-2":
            context.state.clear()
        return share_out(request, name, context)

    monkeypatch.setattr(client, "share_out", restarted)
    result = run(clients=6, privacy="secure", clusterer="single", num_server_rounds=1)
    assert (result.summary["clients_ok"], result.summary["clients_failed"]) == (5, 1)
    assert any("client-2 failed: FederationError: this client has nothing of round 1 to add" in m for m in messages)


def test_all_clusters_lost_ends_the_run_with_the_reason(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def fails(*_: Any) -> Any:
        raise RuntimeError("gone")

    monkeypatch.setattr(client, "mask", fails)
    with pytest.raises(FederationError, match="min-success-fraction: 0 of 6 clients sent a usable update"):
        run(clients=6, privacy="secure", num_server_rounds=1)
