"""Deployments in tests: the shell blocks of docs/DEPLOY.md, run as they stand, and what they started."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tests_support import files_of

from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig

ROOT = Path(__file__).parents[1]
CLIENTS = ["clinic-a", "clinic-b", "clinic-c", "clinic-d"]
PORTS = ("8000", "9094", "9095", "9096", "9097")
BIN = Path(sys.executable).parent
WAIT = 600.0
"""Seconds until a test gives up."""
SHORTEST_TIMEOUT = 30.0
"""Seconds of `round-timeout`, where rounds are quick; on a busy machine a few times what they take."""


def blocks(*labels: str) -> str:
    """Return the shell blocks of docs/DEPLOY.md with these labels, in their order, as one script."""
    text = (ROOT / "docs" / "DEPLOY.md").read_text()
    found = re.findall(r"<!-- ([\w-]+) -->\n```bash\n(.*?)```", text, flags=re.DOTALL)
    assert {label for label, _ in found} >= set(labels)
    return "".join(block for label, block in found if label in labels)


@dataclass
class Deployment:
    """What the blocks started in ``work``. ``port`` stands for 8000 of the page, which may be taken here."""

    work: Path
    port: int
    environment: dict[str, str]
    shell: psutil.Process

    def process(self, program: str, *words: str) -> psutil.Process:
        """Return the one process of a program whose arguments contain all the words."""
        found = []
        for process in self.processes():
            line = words_of(process)
            if any(Path(word).name == program for word in line[:2]) and all(w in " ".join(line) for w in words):
                found.append(process)
        assert len(found) == 1, [words_of(p) for p in found]
        return found[0]

    def processes(self) -> list[psutil.Process]:
        """Return all that runs, also what was started later with `start`."""
        return [p for p in psutil.Process().children(recursive=True) if p.pid != self.shell.pid]

    def start(self, command: list[str], log: str, *, forks: bool = True) -> "subprocess.Popen[bytes]":
        """Start a command as the blocks do, with its output in a file; a node without forks as Flower has it."""
        first, *rest = self.environment["PATH"].split(os.pathsep)
        environment = self.environment | {"PATH": os.pathsep.join([first, *rest] if forks else rest)}
        with (self.work / "logs" / log).open("w") as file:
            return subprocess.Popen(command, cwd=self.work, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def log(self, name: str) -> str:
        """Return what a process has written so far."""
        return (self.work / "logs" / name).read_text()

    def run(self, *arguments: str, timeout: float = 600.0) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        command = [str(BIN / arguments[0]), *arguments[1:]]
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )


@contextmanager
def deployed(work: Path, *labels: str, timeout: float = 900.0) -> Iterator[Deployment]:
    """Run the labelled blocks in ``work``, which stands for the project's directory; stop everything at the end.

    Fails where one of their commands does. Where Flower starts its executor, `disue executor` comes in its place, which
    leaves seconds of imports for each message out.
    """
    (work / "docker").symlink_to(ROOT / "docker")
    # Where a dozen processes want two cores, Flower's SuperLink waits too long for its database, and ends its executor.
    stands_for(work / "first" / "flower-superlink", f"nice -n -10 {BIN}/flower-superlink")
    stands_for(work / "first" / "flower-superexec", f"{BIN}/disue executor")
    environment = os.environ | {
        "FLWR_HOME": str(work / "flwr"),
        "PATH": os.pathsep.join([str(work / "first"), str(BIN), os.environ["PATH"]]),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PYTHONUNBUFFERED": "1",
    }
    script = blocks(*labels)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for documented, free in ports.items():
        script = re.sub(rf"\b{documented}\b", str(free), script)
    finished, log_path = work / "finished", work / "blocks.log"
    script += f"\ntouch {finished}\nread -r _ || true\n"
    with log_path.open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-e", "-c", script],
            cwd=work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: finished.exists() or shell.poll() is not None, timeout, "the blocks of the page have run")
        assert finished.exists(), log_path.read_text()[-4000:] + str(
            [(path.name, path.read_text()[-1000:]) for path in (work / "logs").glob("*")]
        )
        yield Deployment(work, ports["8000"], environment, psutil.Process(shell.pid))
    finally:
        kill_children()


def stands_for(path: Path, command: str) -> None:
    """Write a program that runs this command with its arguments."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


def words_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process; none, if it has ended in the meantime."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def command_of(process: psutil.Process) -> list[str]:
    """Return the command line by which a Flower command can be started again."""
    return process.cmdline()[1:]


def kill(process: psutil.Process) -> None:
    """End a SuperNode with all that it started, as a power cut does."""
    tree = [process, *process.children(recursive=True)]
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(tree, timeout=10)


def kill_children() -> None:
    """Stop all processes that this one has started, and theirs."""
    for _ in range(3):  # what is killed may have started another in the meantime
        tree = psutil.Process().children(recursive=True)
        for member in tree:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(tree, timeout=10.0)


def set_to(settings: Mapping[str, object]) -> list[str]:
    """Return the words by which `disue` is told of settings."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    """Return the condition's value as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.2)
    return value


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Return the complete rows of metrics.jsonl."""
    path = directory / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def clusters_of(directory: Path) -> dict[str, str]:
    """Return every client's cluster, from clients.csv."""
    with (directory / "clients.csv").open() as file:
        return {row["client"]: row["cluster"] for row in csv.DictReader(file)}


def artefacts(directory: Path) -> set[str]:
    """Return the names of the files in a run directory, with numbers left out."""
    return {re.sub(r"\d+", "<k>", name) for name in files_of(directory)}


def simulate(directory: Path) -> Path:
    """Simulate four clients in two clusters, shortly, and return the run directory."""
    values = {"model": "mlp", "num-server-rounds": 1, "distill-steps": 5, "num-groups": 2, "num-clusters": 2}
    run_inline(RunConfig.from_flower(values | {"output-dir": str(directory)}), 4)
    return directory


def check_run_directory(directory: Path, rounds: int, simulation: Path) -> None:
    """Check that a run of the four clinics went well, and left what a simulation leaves."""
    assert sorted(artefacts(directory)) == sorted(artefacts(simulation))
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "completed"
    rows = rows_of(directory)
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    assert [(row["clients_ok"], row["clients_failed"], row["clients_rejected"]) for row in rows] == [(4, 0, 0)] * rounds
    with (directory / "clients.csv").open() as file:
        clients = {row["client"]: row for row in csv.DictReader(file)}
    assert sorted(clients) == CLIENTS
    # 50 images of each digit, of which a fifth is held out; clinic-b and clinic-d lack a digit.
    assert [int(clients[name]["examples"]) for name in CLIENTS] == [200, 160, 200, 160]
    low, also_low, high, also_high = (clients[name]["cluster"] for name in CLIENTS)
    assert low == also_low != high == also_high
