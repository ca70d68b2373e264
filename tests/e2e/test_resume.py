"""Runs that are killed for good go on as if they had not been: at random moments, and Flower's own."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from resuming import carry_out, left_by, simulation_on_ray

from disue_cli.engines import ray
from disue_cli.engines.flower import run_status, started_run, tool
from disue_cli.engines.ray import private_superlink

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLIENTS = 6
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 10,
    "model": "mlp",
    "distill-steps": 20,
    "fraction-train": 0.7,
    "seed": 3,
}
KILLS = 20


@pytest.fixture(scope="module")
def start() -> Callable[[Path], ForkServerProcess]:
    """Start, or go on with, the run in a directory, in a process of its own that has its imports already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["disue_cli.engines.inline", "server_app.run", "client_app.app", "client_app.training_job"]
    )

    def begin(directory: Path) -> ForkServerProcess:
        process = context.Process(target=carry_out, args=(SETTINGS, CLIENTS, directory))
        process.start()
        return process

    return begin


def begun(process: ForkServerProcess, directory: Path, before: float) -> bool:
    """Wait until a process writes in a run directory; False: it ended before it did."""
    progress = directory / "progress.json"
    while process.is_alive():
        try:
            if progress.stat().st_mtime > before:
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    return False


def ended(process: ForkServerProcess) -> int | None:
    """Return how a process ends."""
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: Callable[[Path], ForkServerProcess]) -> tuple[Path, float]:
    """An uninterrupted run, and how many seconds it took from its first round to its end."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = start(directory)
    assert begun(process, directory, 0.0)
    first = time.monotonic()
    assert ended(process) == 0
    return directory, time.monotonic() - first


@pytest.mark.parametrize("chain", range(4))
def test_a_run_that_is_killed_at_random_moments_comes_to_the_same_end(
    whole: tuple[Path, float], tmp_path: Path, start: Callable[[Path], ForkServerProcess], chain: int
) -> None:
    """Twenty kills in all, most of them of a run that went on after another one, and some as it began or ended."""
    expected, seconds = whole
    moments = random.Random(chain)
    directory = tmp_path / "run"
    kills, left = 0, seconds
    while kills < KILLS // 4:
        if (directory / "summary.json").exists():
            shutil.rmtree(directory)
        before = (directory / "progress.json").stat().st_mtime if (directory / "progress.json").exists() else 0.0
        process = start(directory)
        if kills == chain:  # once as it starts, with nothing written or much to be cut
            while process.is_alive() and not (directory / "checkpoint").exists():
                time.sleep(0.001)
        elif begun(process, directory, before):
            rows = (directory / "metrics.jsonl").read_text().count("\n")
            left = seconds * (1.0 - rows / SETTINGS["num-server-rounds"])
            time.sleep(moments.uniform(0.0, 1.1 if kills % 2 else 0.4) * left)
        process.kill()
        kills += ended(process) == -signal.SIGKILL
    if not (directory / "summary.json").exists():
        assert ended(start(directory)) == 0
    assert left_by(directory) == left_by(expected)


def test_a_simulation_that_is_ended_at_once_leaves_nothing_running_and_goes_on_with_flwr_run(tmp_path: Path) -> None:
    """On other node ids, in other processes, with clients that have the config from Flower."""
    settings = SETTINGS | {"num-server-rounds": 4}
    expected, directory = tmp_path / "expected", tmp_path / "run"
    carry_out(settings, CLIENTS, expected)

    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with simulation_on_ray(directory, "--clients", str(CLIENTS), *words, rows=1) as (process, family):
        for _ in range(2):  # the first asks it to end after its round
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        process.communicate(timeout=180)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert process.returncode == 128 + signal.SIGTERM
    rows = (directory / "metrics.jsonl").read_bytes()
    time.sleep(3)
    assert (directory / "metrics.jsonl").read_bytes() == rows

    overrides = tmp_path / "overrides.toml"
    overrides.write_text(tomli_w.dumps(settings | {"resume-from": str(directory)}))
    link = tmp_path / "link"
    link.mkdir()
    with private_superlink(link) as environment:
        command = [tool("flwr"), "run", str(ROOT), "--stream", "--run-config", str(overrides)]
        command += ["--federation-config", f"num-supernodes={CLIENTS} client-resources-num-cpus=1"]
        done = subprocess.run(
            command, cwd=link, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        log = (done.stdout + done.stderr).splitlines()
        status = run_status(started_run(log), ray.CONNECTION, environment, link)
    assert status == "finished:completed", "\n".join(log[-30:])
    assert not any("[ROUND 1/4]" in line for line in log)
    resumed, uninterrupted = left_by(directory), left_by(expected)
    for name in uninterrupted:  # node ids are in the checkpoints, and both are in each other's places
        if not name.startswith("checkpoint/"):
            assert resumed[name] == uninterrupted[name], name
    assert json.loads((directory / "summary.json").read_text())["rounds"] == 4
