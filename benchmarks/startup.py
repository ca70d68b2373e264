"""CPU time until something happens: the help, bad input, a client's first training, and a whole small run.

    python benchmarks/startup.py

Prints one JSON line. The yardstick is a process that imports torch and Flower and does nothing, which a run cannot be
without; children's CPU time, by turns, medians.

With ``--ray`` also how long the user waits for a simulation through Flower and Ray: until its clients take part, its
first round and its end, in wall time, to that of the yardstick. Nothing else should run on the machine then.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

from benchmarks.machine import machine

SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
DISUE = "from disue_cli.main import main; main()"
CLIENT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
import client_app.app
from client_app.client import LocalClient
from client_app.memory import Prepared
from disue.config import ClientConfig
from disue.models import get_state
from disue.objective import PLAIN
from flwr.app import Context, RecordDict
node = {{"partition-id": 0, "num-partitions": 12}}
client = LocalClient(Context(1, 1, node, RecordDict(), ClientConfig().to_flower()), None)
client.train(Prepared(get_state(client.initial_model())), PLAIN, client.rng("train", 1), 1)
"""
COMMANDS = {
    "imports": ["import torch, flwr.serverapp, flwr.clientapp"],
    "help": [DISUE, "--help"],
    "client": [CLIENT],
    "bad_input": [DISUE, "simulate", "--engine", "inline", "--set", "alpha=0"],
    "run": [DISUE, "simulate", "--engine", "inline", "--set", "num-server-rounds=1", "--output"],
}


def one_thread() -> dict[str, str]:
    """Return the environment of a process that computes with one thread.

    This process keeps its own: tests import this file, and all that came after would have one thread, too.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def cpu_seconds(name: str) -> float:
    """Return the CPU seconds of one process and its children."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", *COMMANDS[name]] + ([str(Path(directory) / "run")] if name == "run" else [])
        before = os.times()
        status = subprocess.run(command, cwd=directory, env=one_thread(), **SILENT).returncode
        after = os.times()
    if status != (2 if name == "bad_input" else 0):
        raise SystemExit(f"{name} ended with status {status}")
    return after.children_user - before.children_user + after.children_system - before.children_system


def waits_for_ray() -> dict[str, float]:
    """Return the wall seconds until a run's directory is there, its first round is over, and it has ended."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "run"
        settings = [word for setting in ("num-server-rounds=2", "report=false") for word in ("--set", setting)]
        command = [sys.executable, "-c", DISUE, "simulate", "--engine", "ray", "--output", str(place), *settings]
        signs = {"ray_start": place / "config.toml", "ray_first_round": place / "metrics.jsonl"}
        found: dict[str, float] = {}
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=directory, env=one_thread(), **SILENT)
        try:
            while process.poll() is None:
                for name, path in signs.items():
                    if name not in found and path.exists() and path.stat().st_size:
                        found[name] = time.perf_counter() - started
                time.sleep(0.05)
        finally:
            process.terminate()  # where it was interrupted here; it ends what it started
        if process.returncode or found.keys() != signs.keys():
            raise SystemExit(
                f"the run through Ray ended with status {process.returncode}, and {sorted(found)} were seen"
            )
        return found | {"ray_end": time.perf_counter() - started}


def waits_compared(turns: int) -> dict[str, float]:
    """Return the typical waits in seconds, and their ratios to that for the yardstick."""
    waits: dict[str, list[float]] = {}
    for _ in range(turns):
        started = time.perf_counter()
        cpu_seconds("imports")
        waits.setdefault("imports", []).append(time.perf_counter() - started)
        for name, value in waits_for_ray().items():
            waits.setdefault(name, []).append(value)
    typical = {name: median(values) for name, values in waits.items()}
    yardstick = typical.pop("imports")
    return {f"{name}_seconds": round(value, 1) for name, value in typical.items()} | {
        f"{name}_to_imports": round(value / yardstick, 1) for name, value in typical.items()
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--ray", action="store_true", help="also a simulation through Flower and Ray")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.turns):
        for name in COMMANDS:
            seconds[name].append(cpu_seconds(name))
    typical = {name: median(values) for name, values in seconds.items()}
    told = {
        "benchmark": "startup",
        **{f"{name}_seconds": round(value, 2) for name, value in typical.items()},
        **{
            f"{name}_to_imports": round(typical[name] / typical["imports"], 3)
            for name in ("help", "bad_input", "client", "run")
        },
        **machine(),
    }
    if arguments.ray:
        told |= waits_compared(arguments.turns)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
