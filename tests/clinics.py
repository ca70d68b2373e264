"""Runs of the four clinics of docs/DEPLOY.md as plain processes on one host, and in one process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployment import WAIT, Deployment, set_to

from client_app.app import app as client_app
from disue_cli.engines.inline import InlineGrid
from server_app.config import RunConfig
from server_app.run import execute

SETTINGS: dict[str, Any] = {
    "dataset": "own",
    "input-shape": "1x8x8",
    "classes": "0,1,2,3,4,5,6,7,8,9",
    "model": "mlp",
    "distill-steps": 5,
    "min-clients": 4,
    "join-timeout": 120.0,
    "num-server-rounds": 1,
}


def submission(deployment: Deployment, settings: dict[str, Any], directory: Path) -> list[str]:
    places = {"proxy": f"path:{deployment.work / 'demo' / 'proxy'}", "output-dir": directory}
    return ["run", "plain", *set_to(settings | places)]


def carried_out(deployment: Deployment, settings: dict[str, Any], directory: Path) -> Path:
    """Carry out a run to its good end, and return its directory."""
    done = deployment.run("disue", *submission(deployment, settings, directory), timeout=WAIT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert summary_of(directory)["status"] == "completed"
    return directory


def in_one_process(deployment: Deployment, settings: dict[str, Any], directory: Path, clinics: Sequence[str]) -> Path:
    """Carry out the same run of the same clinics in this process, and return its directory."""
    demo = deployment.work / "demo"
    values = {"min-clients": len(clinics), "proxy": f"path:{demo / 'proxy'}", "output-dir": str(directory)}
    config = RunConfig.from_flower(settings | values)
    files = {name: demo / name / "images.npz" for name in clinics}
    nodes: list[dict[str, object]] = [
        {"name": name, "data-path": str(file if file.exists() else file.parent)} for name, file in files.items()
    ]
    execute(config, InlineGrid(client_app, config.to_flower(), nodes))
    return directory


def summary_of(directory: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return summary
