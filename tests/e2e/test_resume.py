"""Runs that are killed for good go on as if they had not been: `disue simulate` at random moments, and Flower's own."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from resuming import left_by

from disue.cli import ray
from disue.cli.flower import run_status, started_run, tool
from disue.cli.ray import private_superlink

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CLIENTS = 6
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 10,
    "model": "mlp",
    "distill-steps": 20,
    "fraction-train": 0.7,
    "seed": 3,
}
KILLS = 20


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).parent / "disue"), "simulate", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def settings_as_words(settings: dict[str, Any]) -> list[str]:
    return [
        "--clients",
        str(CLIENTS),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]


def begun(process: subprocess.Popen[bytes], directory: Path, before: float) -> bool:
    """Wait until a process writes in a run directory; False: it ended before it did."""
    progress = directory / "progress.json"
    while process.poll() is None:
        try:
            if progress.stat().st_mtime > before:
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """An uninterrupted run, and how many seconds it took from its first round to its end."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = start("--engine", "inline", *settings_as_words(SETTINGS), "--output", str(directory))
    assert begun(process, directory, 0.0)
    first = time.monotonic()
    assert process.wait() == 0
    return directory, time.monotonic() - first


@pytest.mark.parametrize("chain", range(4))
def test_a_run_that_is_killed_at_random_moments_comes_to_the_same_end(
    whole: tuple[Path, float], tmp_path: Path, chain: int
) -> None:
    """Twenty kills in all, most of them of a run that went on after another one, and some as it began or ended."""
    expected, seconds = whole
    moments = random.Random(chain)
    directory = tmp_path / "run"
    fresh = ["--engine", "inline", *settings_as_words(SETTINGS), "--output", str(directory)]
    kills, left = 0, seconds
    while kills < KILLS // 4:
        if (directory / "summary.json").exists():
            shutil.rmtree(directory)
        started = (directory / "config.toml").exists()
        before = (directory / "progress.json").stat().st_mtime if (directory / "progress.json").exists() else 0.0
        process = start(*(["--engine", "inline", "--resume", str(directory)] if started else fresh))
        if kills == chain:  # once as it starts, with nothing written or much to be cut
            while process.poll() is None and not (directory / "checkpoint").exists():
                time.sleep(0.001)
        elif begun(process, directory, before):
            rows = (directory / "metrics.jsonl").read_text().count("\n")
            left = seconds * (1.0 - rows / SETTINGS["num-server-rounds"])
            time.sleep(moments.uniform(0.0, 1.1 if kills % 2 else 0.4) * left)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    if not (directory / "summary.json").exists():
        started = (directory / "config.toml").exists()
        assert start(*(["--engine", "inline", "--resume", str(directory)] if started else fresh)).wait() == 0
    assert left_by(directory) == left_by(expected)


def test_a_killed_simulation_goes_on_with_flwr_run(tmp_path: Path) -> None:
    """On other node ids, in other processes, with clients that have the config from Flower."""
    settings = SETTINGS | {"num-server-rounds": 4}
    expected, directory = tmp_path / "expected", tmp_path / "run"
    words = settings_as_words(settings)
    assert start("--engine", "inline", *words, "--output", str(expected)).wait() == 0

    process = start("--engine", "ray", *words, "--output", str(directory))
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None
        time.sleep(0.1)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    assert process.wait() == -signal.SIGKILL
    psutil.wait_procs(family[1:], timeout=20)
    assert not (directory / "summary.json").exists()

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
