"""CPU time until something happens: the help, bad input, and a whole small run.

    python benchmarks/startup.py

Prints one JSON line. The yardstick is a process that imports torch and Flower and does nothing, which a run cannot be
without; children's CPU time, by turns, medians.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

from benchmarks.machine import machine

DISUE = "from disue.cli.main import main; main()"
COMMANDS = {
    "imports": ["import torch, flwr.serverapp, flwr.clientapp"],
    "help": [DISUE, "--help"],
    "bad_input": [DISUE, "simulate", "--engine", "inline", "--set", "alpha=0"],
    "run": [DISUE, "simulate", "--engine", "inline", "--output"],
}


def cpu_seconds(name: str) -> float:
    """Return the CPU seconds of one process and its children."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", *COMMANDS[name]] + ([str(Path(directory) / "run")] if name == "run" else [])
        before = os.times()
        status = subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        after = os.times()
    if status != (2 if name == "bad_input" else 0):
        raise SystemExit(f"{name} ended with status {status}")
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.turns):
        for name in COMMANDS:
            seconds[name].append(cpu_seconds(name))
    typical = {name: median(values) for name, values in seconds.items()}
    told = {
        "benchmark": "startup",
        **{f"{name}_seconds": round(value, 2) for name, value in typical.items()},
        **{f"{name}_to_imports": round(typical[name] / typical["imports"], 3) for name in ("help", "bad_input", "run")},
        **machine(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
