"""Real processes on loopback: a SuperLink and SuperNodes whose clients have data of their own, one of which dies."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tomli_w
from PIL import Image
from tests_support import ARTEFACTS_OF_TWO, files_of

from disue.cli import ray
from disue.cli.flower import run_status, started_run, tool
from disue.cli.ray import CONNECTION
from disue.data import load_dataset

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROUND_TIMEOUT = 90.0
CLASSES = {"hospital-a": range(5), "hospital-b": range(5), "hospital-c": range(5, 10), "hospital-d": range(5, 9)}


class Machines:
    """A SuperLink and SuperNodes, each a process of its own with a log of its own."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.port = ray._free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        home = work / "flwr"
        home.mkdir()
        connection = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}}))
        self.environment = os.environ | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(tool('flwr')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def start(self, name: str, *command: str) -> None:
        with (self.work / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [tool(command[0]), *command[1:]],
                cwd=self.work,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_superlink(self) -> None:
        self.start("superlink", "flower-superlink", "--insecure", "--port", str(self.port))
        ray._wait_until_healthy(self.port, self.processes["superlink"], self.work / "superlink.log")

    def start_node(self, name: str, data: Path) -> None:
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"]
        command += ["--port", str(ray._free_port()), "--node-config", f'name="{name}" data-path="{data}"']
        self.start(name, *command)

    def kill(self, name: str) -> None:
        """End a node and all that it started, as if its machine lost power."""
        process = psutil.Process(self.processes.pop(name).pid)
        for member in [*process.children(recursive=True), process]:
            member.kill()
        psutil.wait_procs([process], timeout=10)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, config: dict[str, Any], on_line: Callable[[str], None]) -> tuple[str, list[str]]:
        """Submit a run, hand over its log line by line, and return its status and the lines."""
        overrides = self.work / "run.toml"
        overrides.write_text(tomli_w.dumps(config))
        command = [tool("flwr"), "run", str(ROOT), CONNECTION, "--stream", "--run-config", str(overrides)]
        process = subprocess.Popen(
            command, cwd=self.work, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in process.stdout or ():
            lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line.rstrip()))
            on_line(lines[-1])
        process.wait(timeout=60)
        return run_status(started_run(lines), CONNECTION, self.environment, self.work), lines


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    made.start_superlink()
    yield made
    made.stop()


def write_data(root: Path) -> dict[str, Path]:
    """Give two clients folders and two files, with other classes each."""
    digits = load_dataset("digits").train
    images, labels = (digits.x.numpy()[:, 0] * 15).astype(np.uint8), digits.y.numpy()
    places = {}
    for number, (name, classes) in enumerate(CLASSES.items()):
        chosen = np.flatnonzero(np.isin(labels, list(classes)))[number % 2 * 80 :][:80]
        if number < 2:
            for i in chosen:
                (root / name / str(labels[i])).mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[i]).save(root / name / str(labels[i]) / f"{i}.png")
            places[name] = root / name
        else:
            places[name] = root / f"{name}.npz"
            np.savez(places[name], x=images[chosen], y=labels[chosen])
    return places


def test_a_node_that_is_killed_in_a_round_is_left_out_and_is_in_its_cluster_again_when_restarted(
    machines: Machines, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "broken").mkdir()
    for name, place in (data | {"broken": tmp_path / "data" / "broken"}).items():
        machines.start_node(name, place)
    rounds: list[float] = []
    done: set[str] = set()

    def interfere(line: str) -> None:
        if "[ROUND " in line:
            rounds.append(time.monotonic())
        if len(rounds) == 2 and "killed" not in done:
            done.add("killed")
            machines.kill("hospital-b")
        if "client hospital-b did not answer" in line and "noticed" not in done:
            done.add("noticed")
            machines.start_node("hospital-b", data["hospital-b"])

    status, lines = machines.run(
        {
            "dataset": "own",
            "input-shape": "1x8x8",
            "model": "mlp",
            "num-server-rounds": 7,
            "evaluate-every": 7,
            "num-clusters": 2,
            "min-clients": 4,
            "join-timeout": 60.0,
            "round-timeout": ROUND_TIMEOUT,
            "proxy": "dataset:digits",
            "distill-steps": 20,
            "output-dir": str(tmp_path / "run"),
        },
        interfere,
    )
    text = "\n".join(lines)
    assert status == "finished:completed", text
    assert done == {"killed", "noticed"}
    assert text.count("client hospital-b did not answer; going on without it") == 1
    assert text.count("cannot take part: DataError: broken: data-path has no images") == 1
    assert str(tmp_path / "data") not in text
    with (tmp_path / "run" / "clients.csv").open(newline="") as file:
        clients = {row["client"]: row for row in csv.DictReader(file)}
    assert clients.keys() == CLASSES.keys()
    clusters = {name: row["cluster"] for name, row in clients.items()}
    assert clusters["hospital-a"] == clusters["hospital-b"] != clusters["hospital-c"] == clusters["hospital-d"]
    assert f"client hospital-b is back, in cluster {clusters['hospital-b']}" in text
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["clients_ok"] for row in rows[:2]] == [4, 3]
    assert rows[1]["clients_failed"] == 1
    assert rows[-1]["clients_ok"] == 4
    lasted = [later - earlier for earlier, later in itertools.pairwise(rounds)]
    assert lasted[1] < ROUND_TIMEOUT + 15.0, lasted
    assert max(lasted[2:]) < ROUND_TIMEOUT, lasted
    run = tmp_path / "run"
    assert files_of(run) == ARTEFACTS_OF_TWO
