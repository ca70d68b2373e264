"""Plain processes on one host, as docs/DEPLOY.md starts them, and nodes that are killed.

One SuperLink for all tests, in the order of this file.
"""

import csv
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from clinics import SETTINGS, in_one_process, submission, summary_of
from deployment import (
    BIN,
    CLIENTS,
    SHORTEST_TIMEOUT,
    WAIT,
    Deployment,
    check_run_directory,
    command_of,
    deployed,
    free_ports,
    kill,
    rows_of,
    simulate,
    wait_for,
    words_of,
)

from disue_cli.engines.flower import copy_app

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("plain"), "data", "rehearsal", "plain", "trial") as deployment:
        yield deployment


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("seconds_")}


def test_the_blocks_of_the_page_give_what_a_simulation_gives(deployment: Deployment, tmp_path: Path) -> None:
    assert "finished:completed" in (deployment.work / "blocks.log").read_text()
    check_run_directory(deployment.work / "runs" / "plain", 1, simulate(tmp_path / "run"))


def test_what_was_rehearsed_is_what_comes_of_it(deployment: Deployment) -> None:
    runs = deployment.work / "runs"
    rehearsed, real = ((runs / name / "universal.safetensors").read_bytes() for name in ("rehearsal", "plain"))
    assert rehearsed == real


def test_a_node_that_is_killed_between_two_rounds_has_what_it_kept_when_it_is_restarted(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The run is stopped, one node is killed, and the run goes on, to the end that it has in one process.

    The restarted node has Flower's own executor, which forks nothing.
    """
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
    node = psutil.Process(deployment.start(restart, "clinic-b.log", forks=False).pid)
    run = begin(settings | places | {"resume-from": str(directory)}, "state.log")
    assert run.wait(timeout=WAIT) == 0
    assert any(Path(word).name == "flower-superexec" for own in node.children() for word in words_of(own))
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
