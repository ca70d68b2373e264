"""Flower's commands, as our own commands use them: which app they get, and how a run ended."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import disue
from disue import errors
from disue.errors import DisueError, FederationError
from disue.source import PACKAGES

DECODED = {"encoding": "utf-8", "errors": "replace"}
"""How what Flower's commands print is read, whatever the locale: see `quiet_environment`."""


def copy_app(target: Path) -> Path:
    """Copy the app (its packages and pyproject.toml) from where this process runs it, and return ``target``."""
    package = Path(disue.__file__).parent
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__", "*.toml")
        shutil.copytree(package.parent / name, target / name, ignore=ignore)
    candidates = (package / "pyproject.toml", package.parent / "pyproject.toml")  # installed, or a checkout
    shutil.copy(next(path for path in candidates if path.is_file()), target / "pyproject.toml")
    return target


def tool(name: str) -> str:
    """Return the path of one of Flower's commands, the one beside this Python first.

    Raises
    ------
    DisueError
        If there is none.
    """
    path = Path(sys.executable).parent / name
    found = str(path) if path.exists() else shutil.which(name)
    if found is None:
        raise DisueError(f"'{name}' is not installed beside {sys.executable}; install flwr")
    return found


def quiet_environment() -> dict[str, str]:
    """Return this process's environment with Flower's reports off, its commands on the path, and UTF-8."""
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def started_run(log: list[str]) -> str | None:
    """Return the id of the run that `flwr run` started, from what it printed; None if it started none."""
    started = re.search(r"Successfully started run (\d+)", "\n".join(log))
    return started[1] if started else None


def run_status(run_id: str | None, connection: str, environment: dict[str, str], work: Path) -> str:
    """Return what the SuperLink says of a run, e.g. ``finished:completed``.

    Parameters
    ----------
    run_id : str or None
        None: it was not even started.
    connection : str
        A SuperLink connection in Flower's configuration.
    environment : dict of str to str
        In which `flwr` finds that configuration.
    work : Path
        A directory without an app in it.
    """
    if run_id is None:
        return "not started"
    command = [tool("flwr"), "ls", connection, "--run-id", run_id, "--format", "json"]
    output = subprocess.run(command, cwd=work, env=environment, capture_output=True, check=False, **DECODED).stdout
    try:
        return str(json.loads(output[output.index("{") :])["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return "unknown"


def raised(log: list[str]) -> DisueError | None:
    """Return our own error from the log of a failed run; None where it was another one."""
    found = re.findall(r"^disue\.errors\.(\w+): (.*)", "\n".join(log), flags=re.MULTILINE)
    if not found:
        return None
    kind, message = found[-1]
    error: DisueError = getattr(errors, kind, FederationError)(message)
    return error
