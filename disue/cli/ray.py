"""The Ray engine: `flwr run` on a SuperLink of our own, in an environment without surprises.

What could surprise: packages installed anew for every run, code loaded from the directory that an earlier
SuperLink was started from, a Ray cluster that another started or that is no more, an exit status of 0 after a failure,
threads that fight for the cores. So the
SuperLink is private to the run, starts in an empty directory, and is asked at the end how the run went, unless the app
has said so itself.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from disue.cli.flower import copy_app, quiet_environment, raised, run_status, started_run, tool
from disue.config import RunConfig
from disue.errors import FederationError
from disue.files import write_whole
from server_app.stopping import OVER

CONNECTION = "disue"
START_TIMEOUT = 60.0
POLL_SECONDS = 0.2


def run_ray(
    config: RunConfig, num_nodes: int, gpus_per_client: float, on_round: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run the app through Flower's simulation and return the contents of ``summary.json``.

    Parameters
    ----------
    config : RunConfig
        With an absolute ``output-dir``.
    num_nodes : int
        Simulated SuperNodes.
    gpus_per_client : float
        Share of a GPU that each node needs; it limits how many train at once.
    on_round : callable
        Called with each row of ``metrics.jsonl``, as it appears.

    Raises
    ------
    DisueError
        What the app raised; a `FederationError` if the SuperLink does not start, or the run does not finish.
    """
    with tempfile.TemporaryDirectory(prefix="disue-", ignore_cleanup_errors=True) as home:
        work = Path(home)
        app = copy_app(work / "app")
        overrides = work / "run-config.toml"
        overrides.write_text(tomli_w.dumps(config.to_flower()))
        federation = (
            f"num-supernodes={num_nodes} client-resources-num-cpus=1 client-resources-num-gpus={float(gpus_per_client)}"
        )
        with private_superlink(work) as environment:
            command = [tool("flwr"), "run", str(app), CONNECTION, "--stream"]
            command += ["--run-config", str(overrides), "--federation-config", federation]
            log = _follow(command, environment, work, Path(config.output_dir) / "metrics.jsonl", on_round)
            over = _is_over(log)
            status = "finished:completed" if over else run_status(started_run(log), CONNECTION, environment, work)
        if status != "finished:completed":
            _keep(log, Path(config.output_dir))
            raise raised(log) or _with_log(f"the run ended as '{status}'", "\n".join(log[-20:]))
    summary: dict[str, Any] = json.loads((Path(config.output_dir) / "summary.json").read_text())
    return summary


@contextmanager
def private_superlink(work: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations in ``work``; yield the environment that `flwr` commands need to find it.

    Raises
    ------
    FederationError
        If it does not answer within a minute.
    """
    port = _free_port()
    flower_home = work / "flwr"
    flower_home.mkdir()
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    (flower_home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    )
    environment = quiet_environment() | {
        "FLWR_HOME": str(flower_home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS", "local"),  # else Ray takes the last one that was started here
        "OMP_NUM_THREADS": "1",
    }
    command = [
        tool("flower-superlink"),
        "--insecure",
        "--simulation",
        "--disable-runtime-dependency-installation",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log_path = work / "superlink.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_healthy(port, process, log_path)
        yield environment
    finally:
        _stop(process)


def _follow(
    command: list[str],
    environment: dict[str, str],
    work: Path,
    metrics: Path,
    on_round: Callable[[dict[str, Any]], None],
) -> list[str]:
    """Run ``command``, hand over rows as they are written, and return the lines that it printed.

    When the run is over it is not waited for: Flower takes seconds to say so, and again to be asked how it went.
    """
    process = subprocess.Popen(  # in a session of its own: Ctrl-C is for this process, which ends it when it wants
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(line.rstrip() for line in process.stdout or ()), daemon=True)
    reader.start()
    seen = 0
    try:
        while True:
            ended = process.poll() is not None or _is_over(lines)
            rows = _complete_lines(metrics)
            for row in rows[seen:]:
                on_round(json.loads(row))
            seen = len(rows)
            if ended:
                break
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
    reader.join()
    return lines


def _is_over(log: list[str]) -> bool:
    return any(re.search(rf":\s+{OVER}$", line) for line in log)


def _keep(log: list[str], directory: Path) -> None:
    """Keep the log in the run directory, if the run came as far as to make one."""
    if directory.is_dir():
        write_whole(directory / "flower.log", "\n".join(log) + "\n")


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise _with_log("the SuperLink did not start", log_path.read_text()[-2000:])


def _with_log(what: str, log: str) -> FederationError:
    """Print the end of a log, and return an error that says so."""
    print(log, file=sys.stderr)
    return FederationError(f"{what}; the end of its log is above")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants: Flower's and Ray's lead sessions of their own, and take seconds to end."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=10.0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
