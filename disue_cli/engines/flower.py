"""Flower's commands, as our own commands use them: which app they get, and how a run ended."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.request import getproxies_environment

import disue
from disue import errors
from disue.errors import DisueError, FederationError
from disue.source import PACKAGES

LOCAL = ("127.0.0.1", "localhost", "::1")
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Exit|Interrupt|Timeout|Failure)\b.*", re.MULTILINE)
CAUSED = "The above exception was the direct cause of the following exception:"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


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
    """Return this process's environment with Flower's reports to its makers off, and its commands on the path.

    Where there is a proxy, connections to this machine go around it. The commands print UTF-8.
    """
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        **(around_proxies(os.environ) if getproxies_environment() else {}),
    }


def around_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which connections to this machine use no proxy; what they exempt already stays so.

    gRPC reads ``no_grpc_proxy`` alone, where it is set.

    Examples
    --------
    >>> around_proxies({"no_proxy": "intra.example.org"})["NO_PROXY"]
    'intra.example.org,127.0.0.1,localhost,::1'
    >>> around_proxies({"NO_PROXY": "*"})["no_proxy"]
    '*'
    """
    general, of_grpc = _entries(environment, "no_proxy", "NO_PROXY"), _entries(environment, "no_grpc_proxy")
    exempt = _joined(general)
    return {"no_proxy": exempt, "NO_PROXY": exempt, "no_grpc_proxy": _joined(of_grpc or general)}


def _entries(environment: Mapping[str, str], *names: str) -> list[str]:
    return [entry for name in names for part in environment.get(name, "").split(",") if (entry := part.strip())]


def _joined(entries: list[str]) -> str:
    return "*" if "*" in entries else ",".join(dict.fromkeys([*entries, *LOCAL]))  # urllib wants a star alone


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
    output = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, check=False, encoding="utf-8", errors="replace"
    ).stdout
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


def cause(log: list[str]) -> str:
    """Return why a process failed, from what it printed: the first exception of the last chain, or the last line.

    Examples
    --------
    >>> cause(["Traceback (most recent call last):", '  File "a.py", line 1', "OSError: no room", "", "bye"])
    'OSError: no room'
    >>> cause(["starting", "\\x1b[91mERROR\\x1b[0m: port in use", ""])
    'ERROR: port in use'
    """
    lines = [ESCAPES.sub("", line).rstrip() for line in log]
    chain = "\n".join(lines).split("Traceback (most recent call last):\n")
    first = len(chain) - 1
    while first > 1 and chain[first - 1].rstrip().endswith(CAUSED):
        first -= 1
    if first > 0 and (found := EXCEPTION.search(chain[first])):
        return found[0]
    return next((line for line in reversed(lines) if line.strip()), "it said nothing").strip()
