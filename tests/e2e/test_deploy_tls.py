"""TLS and node authentication, as docs/DEPLOY.md starts them, and what happens when something fails.

One SuperLink for all tests, in the order of this file.
"""

import itertools
import json
import re
import shlex
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from deployment import (
    BIN,
    CLIENTS,
    SHORTEST_TIMEOUT,
    WAIT,
    Deployment,
    check_run_directory,
    clusters_of,
    command_of,
    deployed,
    free_ports,
    kill,
    rows_of,
    set_to,
    simulate,
    wait_for,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

SETTINGS: dict[str, object] = {
    "dataset": "own",
    "input-shape": "1x8x8",
    "model": "mlp",
    "distill-steps": 0,  # so that clients are not asked to compare, which costs them a process each
    "min-clients": 4,
    "join-timeout": 240,
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("tls"), "data", "tls") as deployment:
        yield deployment


def nodes(deployment: Deployment) -> dict[str, str]:
    """Return the status of every node that the SuperLink knows."""
    told = deployment.run("flwr", "supernode", "list", "disue", "--format", "json").stdout
    return {node["node-id"]: node["status"] for node in json.loads(told[told.index("{") :])["nodes"]}


def freeze(process: psutil.Process) -> list[psutil.Process]:
    """Stop a SuperNode and all that it started, without ending them, and return them."""
    tree = [process, *process.children(recursive=True)]
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.suspend()
    return tree


def test_the_blocks_of_the_page_give_what_a_simulation_gives(deployment: Deployment, tmp_path: Path) -> None:
    said = (deployment.work / "blocks.log").read_text()
    assert "finished:completed" in said
    assert "4 clients take part; the names of 4 belong to their nodes' keys" in said
    check_run_directory(deployment.work / "runs" / "tls", 1, simulate(tmp_path / "run"))


def test_faults_of_clients_cost_little_and_they_take_part_again(deployment: Deployment) -> None:
    """One is frozen for a round and then goes on; another is killed in the same, and restarted with its key."""
    directory = deployment.work / "runs" / "faults"
    frozen, killed = (deployment.process("flower-supernode", name) for name in ("clinic-d", "clinic-b"))
    restart = command_of(killed)
    usual = max(row["seconds_local"] for row in rows_of(deployment.work / "runs" / "tls"))
    timeout, slack = max(SHORTEST_TIMEOUT, 3 * usual), 10.0 + usual
    settings = SETTINGS | {
        "proxy": f"path:{deployment.work / 'demo' / 'proxy'}",
        "num-clusters": 2,
        "round-timeout": timeout,
        "num-server-rounds": 60,  # more than are needed; the test ends the run
        "evaluate-every": 100,
        "output-dir": directory,
    }
    run = deployment.start([str(BIN / "disue"), "run", "disue", *set_to(settings)], "faults.log")

    def said(words: str) -> bool:
        assert run.poll() is None, deployment.log("faults.log")[-4000:]
        return words in deployment.log("faults.log")

    def rounds() -> int:
        assert run.poll() is None, deployment.log("faults.log")[-4000:]
        return len(rows_of(directory))

    wait_for(lambda: rounds() >= 1, WAIT, "round 1")
    stopped, frozen_at = freeze(frozen), time.monotonic()
    kill(killed)
    for name in ("clinic-d", "clinic-b"):
        wait_for(
            lambda name=name: said(f"client {name} did not answer; going on without it"), WAIT, f"{name} is missed"
        )
    # They may have answered the round that was under way, so that the next one missed them.
    assert time.monotonic() - frozen_at < 2 * timeout + slack
    for member in stopped:
        with suppress(psutil.NoSuchProcess):
            member.resume()
    restarted_until(deployment, restart, lambda: said("client clinic-b is back, in cluster"))
    wait_for(lambda: said("client clinic-d is back, in cluster"), WAIT, "clinic-d is back")
    done = rounds()
    wait_for(lambda: rounds() and 4 in [row["clients_ok"] for row in rows_of(directory)[done:]], WAIT, "all take part")
    deployment.process("flwr-serverapp").terminate()
    assert run.wait(timeout=WAIT) == 0

    text, history = deployment.log("faults.log"), rows_of(directory)
    assert "the run ends early, as was asked; to go on with it: resume-from=" in text
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"
    assert history[0]["clients_ok"] == 4
    assert {row["clients_ok"] + row["clients_failed"] for row in history} == {4}
    # On a busy machine a client that is well may be late, too: it is left out, and comes back, like the others.
    misses = re.findall(r"client (clinic-\w) did not answer", text)
    assert {"clinic-b", "clinic-d"} <= set(misses)
    seconds = [row["seconds_local"] for row in history]
    assert max(seconds) < timeout + slack, seconds
    assert len([lasted for lasted in seconds if lasted >= timeout]) <= len(misses), (seconds, misses)
    back = dict(re.findall(r"client (clinic-\w) is back, in cluster (\d+)", text))
    assert {"clinic-b", "clinic-d"} <= back.keys()
    assert back["clinic-b"] != back["clinic-d"]  # as in the run without faults, where each is with its like


def restarted_until(deployment: Deployment, command: list[str], in_again: Callable[[], bool]) -> None:
    """Start a killed node again and again, as its service manager does.

    Until its last heartbeat has expired the SuperLink takes it for alive, and lets no second one in.
    """
    for attempt in itertools.count(1):
        assert attempt < 40
        node = deployment.start(command, f"again-{attempt}.log")
        wait_for(lambda node=node: node.poll() is not None or in_again(), WAIT, "it is refused, or takes part")
        if in_again():
            return
        assert "Failed to activate SuperNode" in deployment.log(f"again-{attempt}.log")
        time.sleep(5.0)


STRANGERS = {
    "unregistered": (
        "--root-certificates certs/ca.pem --auth-supernode-private-key others/nodes/node-1",
        "[code: 2004] Failed to activate SuperNode.",
    ),
    "without-a-key": (
        "--root-certificates certs/ca.pem",
        "[code: 2001] SuperNode authentication is enabled.",
    ),
    "wrong-ca": (
        "--root-certificates others/ca.pem --auth-supernode-private-key others/nodes/node-1",
        "certificate verify failed: unable to get local issuer certificate",
    ),
    "plain-http-with-a-key": (
        "--insecure --auth-supernode-private-key others/nodes/node-1",
        "SuperNode authentication requires a secure TLS connection with the SuperLink",
    ),
    "plain-http": ("--insecure", "Connection attempt failed, retrying"),
}


def test_no_stranger_gets_in(deployment: Deployment) -> None:
    assert deployment.run("disue", "certs", "others", "--hosts", "localhost", "--nodes", "1").returncode == 0
    known = nodes(deployment)
    assert len(known) == len(CLIENTS)
    processes = {}
    for (name, (options, _)), port in zip(STRANGERS.items(), free_ports(len(STRANGERS)), strict=True):
        command = f"{BIN}/flower-supernode --superlink localhost:{deployment.port} --port {port} {options}"
        node_config = ["--node-config", f'name="{name}" data-path="/nowhere"']
        processes[name] = deployment.start([*shlex.split(command), *node_config], f"{name}.log")
    for name, (_, reason) in STRANGERS.items():
        wait_for(lambda name=name, reason=reason: reason in deployment.log(f"{name}.log"), 120, f"{name}: {reason}")
    for name in processes.keys() - {"plain-http"}:
        assert processes[name].wait(timeout=120) == 1, name
    time.sleep(5.0)  # of the one that goes on trying
    assert processes["plain-http"].poll() is None
    assert "SuperNode ID" not in deployment.log("plain-http.log")
    kill(psutil.Process(processes["plain-http"].pid))
    assert nodes(deployment).keys() == known.keys()
    log = deployment.log("superlink.log")
    assert not any(name in log for name in STRANGERS)


def test_over_plain_http_there_is_no_answer_at_all(deployment: Deployment) -> None:
    for path in ("/health", "/v1/control/list-runs", "/v1/fleet/pull-messages"):
        with pytest.raises((urllib.error.URLError, ConnectionError)) as caught:
            urllib.request.urlopen(f"http://localhost:{deployment.port}{path}", timeout=10)
        assert not isinstance(caught.value, urllib.error.HTTPError)
    assert is_healthy(deployment)


def is_healthy(deployment: Deployment) -> bool:
    """Return whether the SuperLink answers."""
    trust = ssl.create_default_context(cafile=str(deployment.work / "certs" / "ca.pem"))
    try:
        with urllib.request.urlopen(f"https://localhost:{deployment.port}/health", timeout=10, context=trust) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def test_a_superlink_that_is_killed_in_a_run_costs_a_round_at_most(deployment: Deployment) -> None:
    """With its database it knows the nodes again, and the run goes on where it was, as docs/DEPLOY.md says."""
    directory, rounds, known = deployment.work / "runs" / "interrupted", 2, nodes(deployment)
    settings = SETTINGS | {
        "num-server-rounds": rounds,
        "evaluate-every": rounds,
        "proxy": f"path:{deployment.work / 'demo' / 'proxy'}",
    }
    command = [str(BIN / "disue"), "run", "disue", *set_to(settings | {"output-dir": str(directory)})]
    run = deployment.start(command, "interrupted.log")
    wait_for(lambda: rows_of(directory), WAIT, "the first round is over")
    superlink, server = deployment.process("flower-superlink"), deployment.process("flwr-serverapp")
    again = command_of(superlink)
    superlink.kill()
    psutil.wait_procs([superlink], timeout=30)
    assert run.wait(timeout=WAIT) != 0
    before = len(rows_of(directory))
    assert 1 <= before < rounds
    for _ in range(2):  # it waits for the SuperLink: the first asks it to end after its round, the second ends it
        if server.is_running():
            server.terminate()
            psutil.wait_procs([server], timeout=5)
    assert not server.is_running()
    deployment.start(again, "superlink-again.log")
    wait_for(lambda: is_healthy(deployment), 120, "the SuperLink answers")
    resumed = deployment.run("disue", "run", "disue", "--set", f"resume-from={directory}", timeout=WAIT)
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    rows = rows_of(directory)
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    assert [row["clients_ok"] for row in rows[before:]] == [4] * (rounds - before)
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
    assert sorted(clusters_of(directory)) == CLIENTS
    assert nodes(deployment) == dict.fromkeys(known, "online")


def test_no_key_is_in_a_log_line_and_none_in_a_run_directory(deployment: Deployment) -> None:
    secrets = [path for path in (deployment.work / "certs").rglob("*") if path.suffix == ".key" or path.suffix == ""]
    bodies = [path.read_text().splitlines()[1:-1] for path in secrets if path.is_file()]
    assert len(bodies) == 2 + len(CLIENTS)
    lines = set(itertools.chain.from_iterable(bodies))
    looked_at = 0
    for place in (*deployment.work.glob("*.log"), *deployment.work.glob("logs/*"), *deployment.work.glob("runs/**/*")):
        if place.is_file():
            looked_at += 1
            text = place.read_text(errors="replace")
            assert "PRIVATE KEY" not in text, place
            assert not [line for line in lines if len(line) > 20 and line in text], place
    assert looked_at > 20


def test_private_files_are_the_owners(deployment: Deployment) -> None:
    command = ["find", "certs", "-type", "f", "-perm", "/077"]
    listed = subprocess.run(command, cwd=deployment.work, capture_output=True, text=True, check=True).stdout.split()
    assert sorted({Path(name).suffix for name in listed}) == [".pem", ".pub"]
