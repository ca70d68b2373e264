"""The command that repeats a run."""

import shlex

from disue.assignments import assignment, toml_text
from disue.naming import client_name
from server_app.config import RunConfig
from server_app.report.reading import RunRecord

PLACES = ("output-dir", "resume-from")


def command_of(record: RunRecord) -> str:
    """Return a shell command for a run with the same config: `disue simulate` for a simulation, else `flwr run`.

    Keys at their defaults are left out, and so is where the run was written.
    """
    defaults = RunConfig().to_flower()
    settings = {key: value for key, value in record.config.items() if key not in PLACES and defaults.get(key) != value}
    clients = record.client_names
    if clients == [client_name({"partition-id": i}) for i in range(len(clients))]:
        words = ["disue", "simulate", "--clients", str(len(clients))]
        for key, value in settings.items():
            words += ["--set", assignment(key, value)]
        return shlex.join(words)
    toml = " ".join(f"{key}={toml_text(value)}" for key, value in settings.items())
    return shlex.join(["flwr", "run", ".", "--stream", *(["--run-config", toml] if toml else [])])
