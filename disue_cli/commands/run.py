"""`disue run`: submit the app to a SuperLink, follow it, and tell by the exit status how it ended.

`flwr run --stream` exits with 0 also where the app failed, and so do `flwr`'s commands with ``--format json``.
"""

import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

from disue.assignments import parse_assignments
from disue.errors import ConfigError, FederationError
from disue_cli.engines.flower import copy_app, quiet_environment, raised, run_status, tool
from disue_cli.terminal import say
from server_app.config import RunConfig

POLL_SECONDS = 1.0
CONTACT_TIMEOUT = 60.0


def run(connection: str, assignments: list[str]) -> None:
    """Run the app on a SuperLink; see ``disue run --help``.

    Raises
    ------
    ConfigError
        Before anything is sent, or for a connection that Flower's configuration does not have.
    FederationError
        If the SuperLink cannot be reached, or the run does not end well.
    """
    values = parse_assignments(assignments)
    config = RunConfig.from_flower(values)

    from server_app.checks import check_names

    if config.resume_from and Path(config.resume_from, "config.toml").is_file():  # else on the ServerApp's machine only
        from server_app.resume import resumed_config

        config = resumed_config(values)
    check_names(config)
    environment = quiet_environment()
    with tempfile.TemporaryDirectory(prefix="disue-") as home:
        work = Path(home)
        run_id = submit(connection, config, environment, work)
        say(f"run {run_id} on SuperLink connection '{connection}'")
        try:
            log = _follow([tool("flwr"), "log", run_id, connection], environment, work)
            status = end_of_run(run_id, connection, environment, work)
        except (KeyboardInterrupt, SystemExit):
            say(
                f"run {run_id} goes on; to see it: flwr log {run_id} {connection}; "
                f"to end it: flwr stop {run_id} {connection}",
                error=True,
            )
            raise
    if status != "finished:completed":
        raise raised(log) or FederationError(f"run {run_id} ended as '{status}'")
    say(f"run {run_id}: {status}")
    directories = re.findall(r"run directory: (.+)", "\n".join(log))
    if directories:
        say(f"artefacts, on the machine of the ServerApp: {directories[-1]}")


def submit(connection: str, config: RunConfig, environment: dict[str, str], work: Path) -> str:
    """Send the app, with the settings that differ from its own, and return the id of the run."""
    command = [tool("flwr"), "run", str(copy_app(work / "app")), connection, "--format", "json"]
    settings = config.model_dump(by_alias=True, exclude_unset=True)
    if settings:
        overrides = work / "run-config.toml"
        overrides.write_text(tomli_w.dumps(settings), encoding="utf-8")
        command += ["--run-config", str(overrides)]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, check=False, encoding="utf-8", errors="replace"
    )
    reply = _json(done.stdout)
    if reply.get("success"):
        return str(reply["run-id"])
    told = re.sub(
        r"^Using SuperLink: .*$", "", str(reply.get("error-message") or done.stdout + done.stderr), flags=re.M
    )
    reason = " ".join(told.split())
    if "not found in the Flower configuration file" in reason:
        raise ConfigError(f"CONNECTION: {reason[reason.rindex('SuperLink connection') :]}")
    raise FederationError(f"the SuperLink of connection '{connection}' did not take the run: {reason}")


def _json(text: str) -> dict[str, Any]:
    try:
        reply: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError:
        return {}
    return reply


def _follow(command: list[str], environment: dict[str, str], work: Path) -> list[str]:
    """Run ``command``, print its lines as they come, and return them."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                say(lines[-1])
        finally:
            process.kill()
    return lines


def end_of_run(run_id: str, connection: str, environment: dict[str, str], work: Path) -> str:
    """Wait until the run has ended, also where its log broke off before, and return its status."""
    last_contact = time.monotonic()
    while not (status := run_status(run_id, connection, environment, work)).startswith("finished"):
        if status != "unknown":
            last_contact = time.monotonic()
        elif time.monotonic() - last_contact > CONTACT_TIMEOUT:
            raise FederationError(
                f"the SuperLink of connection '{connection}' does not answer any more; ask it later how run {run_id} "
                f"ended: flwr ls {connection} --run-id {run_id}"
            )
        time.sleep(POLL_SECONDS)
    return status
