"""The run directory: where it is, whether it may be written, and how the run in it is set."""

import itertools
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path

import tomli_w

from disue.errors import ConfigError, DataError
from disue.files import PARTS, RUN_FORMAT, inside, user_path, write_whole
from disue.tasks import Task
from server_app.config import RunConfig
from server_app.run_lock import LOCK
from strategies.rounds.registry import Client

PACKAGES = ("flwr", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors")
BEFORE_THE_CONFIG = (LOCK.parent.as_posix(), LOCK.as_posix(), ".config.toml.*.part")
"""What a process that was killed as it made a run directory may have left there."""
AT_THE_END = (
    *("summary.json", "clients.csv", "teaching.csv", "portrait.safetensors", "portrait.json", "report.html"),
    *("gate.safetensors", "MODEL_CARD.md", "universal*.safetensors", "experts/*.safetensors"),
)


def default_directory(config: RunConfig) -> Path:
    """Return the absolute run directory for a config.

    It is ``resume-from``, or else ``output-dir``, or else a new ``runs/<date-time>-<method>``.

    Raises
    ------
    DataError
        If the one that is named can be no path, or begins with the home of a user who does not exist.
    """
    for key, value in (("resume-from", config.resume_from), ("output-dir", config.output_dir)):
        if value:
            return user_path(value, key).absolute()
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}"
    candidates = (Path("runs").absolute() / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def check_directory(directory: Path) -> None:
    """Raise `ConfigError` if a run cannot be written there; nothing is left behind.

    The directory must be missing or empty. That it can be written is tried with a file: permissions alone do not
    tell, least of all to root. A directory that is missing is tried by one of another name beside it, so that of two
    who look at once neither takes it away from the other.
    """
    try:
        if directory.is_dir() and not all(_is_left_over(path, directory) for path in directory.rglob("*")):
            raise ConfigError(f"output-dir: '{directory}' is not empty; name another directory")
        there = next(path for path in (directory, *directory.parents) if path.is_symlink() or path.exists())
        with (
            nullcontext(there)
            if there == directory
            else tempfile.TemporaryDirectory(prefix=".disue-", dir=there) as place,
            tempfile.TemporaryFile(dir=place),
        ):
            pass
    except OSError as error:
        raise ConfigError(f"output-dir: '{directory}' cannot be written ({error.strerror})") from None


def _is_left_over(path: Path, directory: Path) -> bool:
    name = path.relative_to(directory).as_posix()
    return not path.is_symlink() and any(fnmatchcase(name, pattern) for pattern in BEFORE_THE_CONFIG)


def forget_after(directory: Path, rounds: int) -> None:
    """Remove what a run wrote at its end, and the pictures of rounds after so many."""
    inside(directory, "experts")
    pictures = inside(directory, "generated").glob("round-[0-9][0-9][0-9][0-9]*.png")
    later = (path for path in pictures if int(path.stem.removeprefix("round-")) > rounds)
    ends = (path for pattern in AT_THE_END for path in directory.glob(pattern))
    for path in itertools.chain(ends, later, directory.rglob(PARTS)):
        if path.is_dir() and not path.is_symlink():
            raise DataError(f"'{path}' is no file; remove it")
        path.unlink(missing_ok=True)


@cache
def _versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def write_config(directory: Path, config: RunConfig, task: Task, clients: Sequence[Client]) -> None:
    """Write ``config.toml``: the config as it was resolved, the task, the package versions, and who said hello."""
    settings = {
        "format": RUN_FORMAT,
        "task": task.to_settings(),
        "run": config.to_flower() | {"output-dir": str(directory), "resume-from": ""},
        "versions": dict(_versions()),
        "federation": {
            "clients": [client.name for client in clients],
            "partitions": max(client.num_partitions for client in clients),
        },
    }
    write_whole(directory / "config.toml", tomli_w.dumps(settings))
