"""What docs/PRIVACY.md promises, between processes.

One SuperLink for all tests, in the order of this file.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from clinics import SETTINGS, carried_out, in_one_process, submission, summary_of
from deployment import BIN, CLIENTS, SHORTEST_TIMEOUT, WAIT, Deployment, deployed, kill, rows_of, wait_for
from safetensors.torch import load_file
from torch import Tensor

from client_app.release import sketched
from disue.models import build_model
from disue.privacy.secagg import Contribution
from disue.signature import SignatureParts
from server_app.callbacks.checkpoint import Checkpoints
from server_app.callbacks.ledger import LEDGER, epsilon_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SECURE = SETTINGS | {"privacy": "secure", "prototypes": "cluster"}
MESSAGES_OF_A_ROUND = 4
"""That each client gets before the evaluation: train, share, mask, unmask."""
NOISE = 0.05
DP = SETTINGS | {"privacy": "dp", "dp-noise": NOISE, "dp-delta": 1e-5}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("private"), "data", "plain") as deployment:
        yield deployment


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The vectors that the clients of this process hide."""
    vectors: list[Tensor] = []
    keep = sketched.keep

    def watch(vector: Tensor, *arguments: Any) -> Any:
        vectors.append(vector)
        return keep(vector, *arguments)

    monkeypatch.setattr(sketched, "keep", watch)
    return vectors


def contributed(vector: Tensor) -> Contribution:
    """Return what is in a vector, or in a sum of several."""
    model = build_model("mlp", (1, 8, 8), 10)
    return Contribution.from_vector(vector, model.state_dict(), SignatureParts(10, "all"))


def nearest(directory: Path, tensor: Tensor) -> float:
    """Return how far the most similar tensor in all files of a run is from this one, in lengths of this one."""
    kept = [other for path in directory.rglob("*.safetensors") for other in load_file(path).values()]
    distances = [float((other.ravel() - tensor.ravel()).norm()) for other in kept if other.numel() == tensor.numel()]
    return min(distances, default=torch.inf) / float(tensor.norm())


def assert_only_the_sum_is_kept(directory: Path, vectors: Sequence[Tensor]) -> None:
    """Check that the model of all who are in the sum is in the files, and nothing of any one of them."""
    for tensor in contributed(torch.stack(list(vectors)).sum(0)).state.values():
        assert nearest(directory, tensor) < 1e-3
    for single in map(contributed, vectors):
        assert single.signature is not None
        for tensor in (*single.state.values(), single.signature.label_counts, single.signature.prototypes):
            assert nearest(directory, tensor) > 0.02


def received(deployment: Deployment, name: str, kind: str) -> int:
    """Return how many messages of a kind a client has received."""
    return deployment.log(f"{name}.log").count(f"Receiving: {kind} message")


def test_a_secure_run_is_that_of_one_process_and_keeps_nothing_of_one_client(
    deployment: Deployment, tmp_path: Path, own: list[Tensor]
) -> None:
    directory = carried_out(deployment, SECURE, deployment.work / "runs" / "secure")
    (row,), (expected,) = rows_of(directory), rows_of(in_one_process(deployment, SECURE, tmp_path / "run", CLIENTS))
    assert row.keys() == expected.keys()
    for key in (key for key in row if not key.startswith("seconds_")):
        assert row[key] == (expected[key] and pytest.approx(expected[key], abs=1e-3)), key
    assert (row["clients_ok"], row["clients_failed"], row["clusters_lost"]) == (4, 0, 0)
    assert len(own) == len(CLIENTS)
    assert_only_the_sum_is_kept(directory, own)
    with (directory / "clients.csv").open() as file:
        assert [(row["client"], row["examples"]) for row in csv.DictReader(file)] == [(name, "") for name in CLIENTS]


def test_releases_are_counted_for_each_run_over_its_interruptions_and_the_noise_is_never_the_same(
    deployment: Deployment, tmp_path: Path
) -> None:
    """A description; and for each round an update, a signature and an evaluation."""
    first, second = deployment.work / "runs" / "dp", tmp_path / "run"

    def spent(directory: Path, by_round: list[int]) -> None:
        """Check that so many releases are told of everywhere."""
        expected = [(epsilon_of(count, NOISE, 1e-5), 1e-5, count) for count in by_round]
        told = [(row["epsilon"], row["delta"], row["releases"]) for row in [*rows_of(directory), summary_of(directory)]]
        assert told == [*expected, expected[-1]]
        assert json.loads((directory / LEDGER).read_text()) == dict.fromkeys(CLIENTS, by_round[-1])

    spent(carried_out(deployment, DP, first), [4])
    spent(in_one_process(deployment, DP, second, CLIENTS), [4])
    for name, tensor in load_file(first / "universal.safetensors").items():
        assert not torch.allclose(load_file(second / "universal.safetensors")[name], tensor, atol=NOISE / 10), name
    spent(carried_out(deployment, DP | {"num-server-rounds": 2, "resume-from": first}, first), [4, 7])


def test_a_secure_round_goes_on_without_one_who_is_killed_and_the_run_ends_without_two(
    deployment: Deployment, tmp_path: Path, own: list[Tensor]
) -> None:
    """Of four, three are needed. The one has shared its secrets out by then, so that its masks are in the others'."""
    directory = deployment.work / "runs" / "killed"
    earlier_rows = rows_of(deployment.work / "runs" / "secure")  # none, where this test runs alone
    usual = max((row["seconds_local"] for row in earlier_rows), default=0.0) / MESSAGES_OF_A_ROUND
    settings = SECURE | {"num-server-rounds": 2, "evaluate-every": 2, "round-timeout": max(SHORTEST_TIMEOUT, 2 * usual)}
    moments = [("clinic-b", "query.mask", 1), ("clinic-d", "train", 2)]
    before = [received(deployment, name, kind) for name, kind, _ in moments]
    run = deployment.start([str(BIN / "disue"), *submission(deployment, settings, directory)], "killed.log")
    for (name, kind, times), earlier in zip(moments, before, strict=True):

        def is_asked(name: str = name, kind: str = kind, count: int = earlier + times) -> bool:
            assert run.poll() is None, deployment.log("killed.log")[-4000:]
            return received(deployment, name, kind) >= count

        wait_for(is_asked, WAIT, f"{name} has received '{kind}'")
        kill(deployment.process("flower-supernode", name))
    assert run.wait(timeout=WAIT) == 1
    said = deployment.log("killed.log")
    for name, _, _ in moments:
        assert f"client {name} did not answer; going on without it" in said
    assert said.splitlines()[-1] == (
        "disue: min-success-fraction: 0 of 4 clients sent a usable update in round 2 and 2 are needed, also when it "
        "was repeated; the first problem was: cluster 0 goes without this round: 2 of its 2 members take part and 3 "
        "are needed"
    )
    assert summary_of(directory)["status"] == "failed"
    (row,) = rows_of(directory)
    assert (row["clients_ok"], row["clients_failed"], row["clusters_lost"]) == (3, 1, 0)
    left = [name for name in CLIENTS if name != "clinic-b"]
    (expected,) = rows_of(in_one_process(deployment, SECURE, tmp_path / "run", left))
    assert row["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-3)
    assert row["client_steps"] == expected["client_steps"]
    assert_only_the_sum_is_kept(directory, own)
    saved = Checkpoints(directory).load()
    assert saved is not None
    assert (saved.round, saved.damaged) == (1, [])
