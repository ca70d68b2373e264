"""What tests of interrupted runs share: which runs there are, and what must be equal in the end."""

import json
import tomllib
from pathlib import Path
from typing import Any

from server_app.methods import METHODS

SETTINGS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS if method != "disue"},
    "disue": {"signature": "prototypes"},
    "two architectures": {"client-models": "mlp,cnn"},
    "generator": {"proxy": "generator", "proxy-size": 50, "generator-steps": 3, "share-label-counts": False},
    "learned start": {"initialisation": "learned", "share-label-counts": False},
    "expert start": {"initialisation": "expert", "signature": "last-layer"},
    "universal start": {"initialisation": "universal", "clusterer": "oracle"},
    "choice": {"clusterer": "ifca"},
    "sums only": {"privacy": "secure", "signature": "last-layer", "num-clusters": 1},
    "no memory": {"expert-memory": 0.0, "initialisation": "blend"},
    "cfl that splits": {"method": "cfl", "cfl-eps1": 50.0, "cfl-eps2": 0.01},
}
"""Every method, and disue with each of its parts that remember something."""


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
