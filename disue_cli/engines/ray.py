"""The Ray engine: `flwr run` on a SuperLink of our own, in an environment without surprises.

What could surprise: packages installed anew for every run, code loaded from the directory that an earlier
SuperLink was started from, a Ray cluster that another started or that is no more, an exit status of 0 after a failure,
threads that fight for the cores, a proxy that does not know this machine, a directory whose name is too long for a
socket. So the SuperLink is private to the run, starts in an empty directory, and is asked at the end how the run went,
unless the app has said so itself.
"""

import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from disue.errors import ConfigError, DiskError, DisueError, FederationError
from disue.files import write_whole
from disue_cli.engines.flower import (
    around_proxies,
    cause,
    copy_app,
    quiet_environment,
    raised,
    run_status,
    started_run,
    tool,
)
from server_app.config import RunConfig
from server_app.stopping import OVER

CONNECTION = "disue"
START_TIMEOUT = 60.0
CLUSTER_TIMEOUT = 10.0
POLL_SECONDS = 0.2
LONGEST_SOCKET = 103
"""Bytes of a socket's path: macOS's limit, Linux allows four more."""
SOCKET_OF_RAY = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
SHORT_PLACES = ("/tmp", "/var/tmp")
LOG = "superlink.log"
DONE = "finished:completed"


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
        What the app raised; a `ConfigError` if there is no directory with a short name for Ray, or no cluster at
        ``RAY_ADDRESS``; a `FederationError` that says why the SuperLink did not start or the run did not finish, and
        where the log is.
    """
    directory = Path(config.output_dir)
    with tempfile.TemporaryDirectory(prefix="disue-", ignore_cleanup_errors=True) as home:
        work, log = Path(home), list[str]()
        app = copy_app(work / "app")
        overrides = work / "run-config.toml"
        overrides.write_text(tomli_w.dumps(config.to_flower()), encoding="utf-8")
        federation = (
            f"num-supernodes={num_nodes} client-resources-num-cpus=1 client-resources-num-gpus={float(gpus_per_client)}"
        )
        try:
            with private_superlink(work) as environment:
                command = [tool("flwr"), "run", str(app), CONNECTION, "--stream"]
                command += ["--run-config", str(overrides), "--federation-config", federation]
                log += _follow(command, environment, work, directory / "metrics.jsonl", on_round)
                status = DONE if _is_over(log) else run_status(started_run(log), CONNECTION, environment, work)
            reason = f"the run ended as '{status}': {cause(log)}"
        except FederationError as error:
            status, reason = "not started", str(error)
        if status != DONE:
            whole = [*log, "", f"{LOG}:", *(work / LOG).read_text(encoding="utf-8", errors="replace").splitlines()]
            raise _failure(raised(log), reason, whole, directory)
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary


@contextmanager
def private_superlink(work: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink for simulations in ``work``; yield the environment that `flwr` commands need to find it.

    Raises
    ------
    FederationError
        If it does not answer within a minute.
    ConfigError
        If there is no directory with a name short enough for Ray, or no cluster at ``RAY_ADDRESS``.
    """
    port = _free_port()
    flower_home = work / "flwr"
    flower_home.mkdir()
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    (flower_home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}}), encoding="utf-8"
    )
    environment = quiet_environment() | {
        "FLWR_HOME": str(flower_home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **around_proxies(os.environ),
    }
    command = [
        tool("flower-superlink"),
        "--insecure",
        "--simulation",
        "--disable-runtime-dependency-installation",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log_path = work / LOG
    with _place_of_ray(work) as place:
        environment |= place
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait_until_healthy(port, process, log_path)
            yield environment
        finally:
            _stop(process)


@contextmanager
def _place_of_ray(work: Path) -> Iterator[dict[str, str]]:
    """Yield the variables that say where Ray keeps its files: where the names of its sockets are short enough.

    A cluster that runs already (``RAY_ADDRESS``) has its place. Without an address Ray takes the last one that was
    started here.
    """
    if os.environ.get("RAY_ADDRESS", "") not in ("", "local"):
        _check_cluster(os.environ["RAY_ADDRESS"])
        yield {}
        return
    with ExitStack() as stack:
        wanted = os.environ.get("RAY_TMPDIR")
        yield {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(_short(Path(wanted)) if wanted else _made_short(work, stack))}


def _check_cluster(address: str) -> None:
    """Raise `ConfigError` if nobody listens where a cluster is said to be: Ray itself would wait for minutes."""
    if address == "auto":  # Ray looks for it on this machine
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CLUSTER_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"RAY_ADDRESS: no cluster answers at '{address}' ({error}); name the HOST:PORT of its head, or unset it"
        ) from None


def _made_short(work: Path, stack: ExitStack) -> Path:
    with suppress(ConfigError):
        return _short(work)
    for place in SHORT_PLACES:
        with suppress(OSError):
            name = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="disue-", dir=place, ignore_cleanup_errors=True)
            )
            return Path(name)
    return _short(work)


def _short(directory: Path) -> Path:
    if len(os.fsencode(directory / SOCKET_OF_RAY)) > LONGEST_SOCKET:
        raise ConfigError(
            f"RAY_TMPDIR: Ray cannot keep its sockets in '{directory}', a name of {len(os.fsencode(directory))} bytes; "
            f"use a directory with at most {LONGEST_SOCKET - len(SOCKET_OF_RAY) - 1}"
        )
    return directory


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
        encoding="utf-8",
        errors="replace",
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


def _complete_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    ended = process.poll()
    what = f"no answer on port {port} in {START_TIMEOUT:g} s" if ended is None else f"it ended with status {ended}"
    log = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    raise FederationError(f"the SuperLink did not start ({what}): {cause(log)}")


def _failure(told: DisueError | None, reason: str, log: list[str], directory: Path) -> DisueError:
    """Keep the log, in the run directory or beside where it would be, and return an error that says why and where.

    An error of our own says why by itself; before there is a run directory its log is of no use.
    """
    if told is not None and not directory.is_dir():
        return told
    path = directory / "flower.log" if directory.is_dir() else directory.with_name(f"{directory.name}.log")
    where = f"the log is in '{path}'"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(log) + "\n")
    except (OSError, DiskError) as error:
        where = f"the log could not be kept ({error})"
    return told or FederationError(f"{reason}; {where}")


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
