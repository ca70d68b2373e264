"""What tests of interrupted runs share: which runs there are, processes to end, and what must be equal in the end."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from deployment import words_of

from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig
from server_app.resume import resumed_config
from strategies.methods import METHODS

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name, method in METHODS.items() if name != "disue" and not method.needs.memory},
    "disue": {"signature": "prototypes"},
    "two architectures": {"client-models": "mlp,cnn"},
    "generator": {
        "proxy": "generator",
        "proxy-size": 50,
        "generator-steps": 3,
        "share-label-counts": False,
        "model": "cnn",
    },
    "learned start": {"initialisation": "learned", "share-label-counts": False},
    "expert start": {"initialisation": "expert", "signature": "last-layer"},
    "universal start": {"initialisation": "universal", "clusterer": "oracle"},
    "choice": {"clusterer": "ifca"},
    "sums only": {"privacy": "secure", "signature": "last-layer", "num-clusters": 1},
    "no memory": {"expert-memory": 0.0, "initialisation": "blend"},
    "cfl that splits": {"method": "cfl", "cfl-eps1": 50.0, "cfl-eps2": 0.01},
}
"""Every method whose clients keep nothing, and disue with each of its parts that remember something."""


def carry_out(settings: dict[str, Any], clients: int, directory: Path) -> None:
    """Carry out a run in this process, or go on with it if it has begun."""
    begun = (directory / "config.toml").exists()
    values = {"resume-from": str(directory)} if begun else settings | {"output-dir": str(directory)}
    run_inline(resumed_config(values) if begun else RunConfig.from_flower(values), clients)


@contextmanager
def simulation_on_ray(
    directory: Path, *words: str, rows: int
) -> Iterator[tuple["subprocess.Popen[str]", list[psutil.Process]]]:
    """Start `disue simulate` on Ray; yield it and all that it started as soon as so many rounds are saved."""
    command = [str(Path(sys.executable).parent / "disue"), "simulate", "--engine", "ray", *words]
    process = subprocess.Popen(
        [*command, "--output", str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )

    def rounds_saved() -> int:
        return max(
            (int(path.name.split("-")[1]) for path in directory.glob("checkpoint/round-*.safetensors")), default=0
        )

    try:
        deadline = time.monotonic() + 180
        while rounds_saved() < rows:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any(Path(word).name == "raylet" for child in family for word in words_of(child)[:1])
        yield process, family
    finally:
        process.terminate()


def left_by(directory: Path) -> dict[str, Any]:
    """Return what a run left, but for measured seconds, its report, its warnings, and where it was."""
    left: dict[str, Any] = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".toml":
            settings = tomllib.loads(path.read_text())
            left[name] = settings | {"run": settings["run"] | {"output-dir": ""}}
        elif path.suffix == ".jsonl":
            left[name] = [_without_seconds(json.loads(line)) for line in path.read_text().splitlines()]
        elif name == "summary.json":
            left[name] = _without_seconds(json.loads(path.read_text()))
        elif not name.startswith(("report", "tensorboard", "warnings")):
            left[name] = path.read_bytes()
    return left


def _without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("seconds_")}
