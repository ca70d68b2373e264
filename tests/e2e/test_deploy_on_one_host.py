"""Plain processes on one host, as docs/DEPLOY.md starts them, and what docs/PRIVACY.md promises between them.

One SuperLink for all tests, in the order of this file.
"""

import csv
import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from deployment import (
    BIN,
    CLIENTS,
    Deployment,
    check_run_directory,
    command_of,
    deployed,
    free_ports,
    kill,
    rows_of,
    set_to,
    simulate,
    wait_for,
)
from safetensors.torch import load_file
from torch import Tensor

from client_app.app import app as client_app
from client_app.release import sketched
from disue.models import build_model
from disue.privacy.secagg import Contribution
from disue.signature import SignatureParts
from disue_cli.engines.flower import copy_app
from disue_cli.engines.inline import InlineGrid
from server_app.callbacks.checkpoint import Checkpoints
from server_app.callbacks.ledger import LEDGER, epsilon_of
from server_app.config import RunConfig
from server_app.run import execute

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

WAIT = 600.0
"""Seconds until a test gives up."""
SHORTEST_TIMEOUT = 30.0
"""Seconds of `round-timeout`; on a busy machine twice what a message takes."""
SETTINGS: dict[str, Any] = {
    "dataset": "own",
    "input-shape": "1x8x8",
    "classes": "0,1,2,3,4,5,6,7,8,9",
    "model": "mlp",
    "distill-steps": 5,
    "min-clients": 4,
    "join-timeout": 120.0,
    "num-server-rounds": 1,
}
SECURE = SETTINGS | {"privacy": "secure", "prototypes": "cluster"}
MESSAGES_OF_A_ROUND = 4
"""That each client gets before the evaluation: train, share, mask, unmask."""
NOISE = 0.05
DP = SETTINGS | {"privacy": "dp", "dp-noise": NOISE, "dp-delta": 1e-5}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("plain"), "data", "plain", "trial") as deployment:
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


def submission(deployment: Deployment, settings: dict[str, Any], directory: Path) -> list[str]:
    places = {"proxy": f"path:{deployment.work / 'demo' / 'proxy'}", "output-dir": directory}
    return ["run", "plain", *set_to(settings | places)]


def carried_out(deployment: Deployment, settings: dict[str, Any], directory: Path) -> Path:
    """Carry out a run to its good end, and return its directory."""
    done = deployment.run("disue", *submission(deployment, settings, directory), timeout=WAIT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert summary_of(directory)["status"] == "completed"
    return directory


def in_one_process(deployment: Deployment, settings: dict[str, Any], directory: Path, clinics: Sequence[str]) -> Path:
    """Carry out the same run of the same clinics in this process, and return its directory."""
    demo = deployment.work / "demo"
    values = {"min-clients": len(clinics), "proxy": f"path:{demo / 'proxy'}", "output-dir": str(directory)}
    config = RunConfig.from_flower(settings | values)
    files = {name: demo / name / "images.npz" for name in clinics}
    nodes: list[dict[str, object]] = [
        {"name": name, "data-path": str(file if file.exists() else file.parent)} for name, file in files.items()
    ]
    execute(config, InlineGrid(client_app, config.to_flower(), nodes))
    return directory


def summary_of(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return summary


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("seconds_")}


def contributed(vector: Tensor) -> Contribution:
    """Return what is in a vector, or in a sum of several."""
    return Contribution.from_vector(vector, build_model("mlp", (1, 8, 8), 10).state_dict(), SignatureParts(10))


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


def test_the_blocks_of_the_page_give_what_a_simulation_gives(deployment: Deployment, tmp_path: Path) -> None:
    assert "finished:completed" in (deployment.work / "blocks.log").read_text()
    check_run_directory(deployment.work / "runs" / "plain", 1, simulate(tmp_path / "run"))


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


def test_a_node_that_is_killed_between_two_rounds_has_what_it_kept_when_it_is_restarted(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The run is stopped, one node is killed, and the run goes on, to the end that it has in one process."""
    directory, state, app = deployment.work / "runs" / "state", deployment.work / "state", tmp_path / "app"
    for name in CLIENTS:
        node = deployment.process("flower-supernode", name)
        command = [f'{word} state-path="{state}"' if word.startswith("name=") else word for word in command_of(node)]
        node.terminate()  # it says goodbye, and is no longer listed
        node.wait(timeout=60)
        deployment.start(command, f"{name}.log")
    settings = SETTINGS | {"method": "scaffold", "momentum": 0.0, "num-server-rounds": 2}
    settings |= {"evaluate-every": 2}  # a process less for each client
    places = {"proxy": f"path:{deployment.work / 'demo' / 'proxy'}", "output-dir": str(directory)}
    copy_app(app)

    def begin(values: dict[str, Any], log: str) -> "subprocess.Popen[bytes]":
        (tmp_path / "run-config.toml").write_text(tomli_w.dumps(values))
        words = ["flwr", "run", str(app), "plain", "--stream", "--run-config", str(tmp_path / "run-config.toml")]
        return deployment.start([str(BIN / words[0]), *words[1:]], log)

    run = begin(settings | places, "state.log")
    wait_for(lambda: "[ROUND 1/2]" in deployment.log("state.log") or run.poll() is not None, WAIT, "round 1")
    deployment.process("flwr-serverapp").terminate()
    assert run.wait(timeout=WAIT) == 0
    assert summary_of(directory)["status"] == "stopped", deployment.log("state.log")[-4000:]
    assert len(rows_of(directory)) == 1
    assert len(list(state.rglob("*.safetensors"))) == len(CLIENTS)

    node = deployment.process("flower-supernode", "clinic-b")
    restart = command_of(node)
    kill(node)
    deployment.start(restart, "clinic-b.log")
    run = begin(settings | places | {"resume-from": str(directory)}, "state.log")
    assert run.wait(timeout=WAIT) == 0
    assert summary_of(directory)["status"] == "completed", deployment.log("state.log")[-4000:]
    assert list(state.iterdir()) == []

    whole = in_one_process(deployment, settings, tmp_path / "whole", CLIENTS)
    assert [without_seconds(row) for row in rows_of(directory)] == [without_seconds(row) for row in rows_of(whole)]
    assert (directory / "universal.safetensors").read_bytes() == (whole / "universal.safetensors").read_bytes()


def test_a_node_without_a_key_that_is_killed_in_a_round_is_in_its_cluster_again_when_restarted(
    deployment: Deployment,
) -> None:
    """And a client whose data cannot be used is left out, and says why."""
    directory, work = deployment.work / "runs" / "back", deployment.work
    (work / "demo" / "broken").mkdir()
    command = f"{BIN}/flower-supernode --insecure --superlink 127.0.0.1:{deployment.port} --port {free_ports(1)[0]}"
    node_config = ["--node-config", f'name="broken" data-path="{work}/demo/broken"']
    broken = deployment.start([*shlex.split(command), *node_config], "broken.log")
    usual = max(row["seconds_local"] for row in rows_of(work / "runs" / "plain"))
    timeout = max(SHORTEST_TIMEOUT, 3 * usual)
    settings = SETTINGS | {"num-clusters": 2, "evaluate-every": 100, "round-timeout": timeout}
    settings |= {"distill-steps": 0}  # so that clients are not asked to compare, which costs them a process each
    settings |= {"num-server-rounds": 60}  # more than are needed; the test ends the run
    run = deployment.start([str(BIN / "disue"), *submission(deployment, settings, directory)], "back.log")

    def said(words: str) -> bool:
        assert run.poll() is None, deployment.log("back.log")[-4000:]
        return words in deployment.log("back.log")

    wait_for(lambda: said("[ROUND 2/60]"), WAIT, "round 2")
    node = deployment.process("flower-supernode", "clinic-b")
    restart = command_of(node)
    kill(node)
    wait_for(lambda: said("client clinic-b did not answer"), WAIT, "clinic-b is missed")
    deployment.start(restart, "clinic-b.log")
    wait_for(lambda: said("client clinic-b is back, in cluster"), WAIT, "clinic-b is back")
    done = len(rows_of(directory))
    wait_for(lambda: said("") and len(rows_of(directory)) > done, WAIT, "a round with it")
    deployment.process("flwr-serverapp").terminate()
    assert run.wait(timeout=WAIT) == 0
    broken.terminate()  # it says goodbye, and is no longer listed
    broken.wait(timeout=60)

    text, rows = deployment.log("back.log"), rows_of(directory)
    assert text.count("client clinic-b did not answer; going on without it") == 1
    assert text.count("cannot take part: DataError: broken: data-path has no images") == 1
    assert f"{work}/demo/" not in text.replace(f"{work}/demo/proxy", "")
    assert [row["clients_ok"] for row in rows[:2]] == [4, 3]
    assert rows[1]["clients_failed"] == 1
    assert rows[-1]["clients_ok"] == 4
    assert rows[1]["seconds_local"] < timeout + 15.0
    assert max(row["seconds_local"] for row in rows[2:]) < timeout
    with (directory / "membership.csv").open() as file:
        clusters = {row["client"]: row["cluster"] for row in csv.DictReader(file)}
    assert clusters.keys() == set(CLIENTS)
    assert clusters["clinic-a"] == clusters["clinic-b"] != clusters["clinic-c"] == clusters["clinic-d"]
    assert f"client clinic-b is back, in cluster {clusters['clinic-b']}" in text


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
