"""Who writes in a run directory: one process at a time.

By `fcntl` and not by filelock: a lock of that package follows links, which whoever made the run directory may have put
there, and cannot be asked whether it is held without taking it.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from disue.errors import ConfigError, DataError
from disue.files import folder_inside, open_inside

LOCK = Path("checkpoint", "lock")
"""In a run directory; a process that writes there holds it, and loses it when it ends, however it ends."""
PATIENCE = 1.0
"""Seconds: who asks whether a directory is held holds it for a moment, too."""


@contextmanager
def exclusive(directory: Path, key: str = "resume-from") -> Iterator[None]:
    """Hold a run directory, which is made if it is missing, against other processes.

    What was read there before may be out of date.

    Raises
    ------
    ConfigError
        If another one holds it; ``key`` says who named the directory.
    DataError
        If the lock is a link or anything else than a file, or its folder leads elsewhere.
    """
    folder_inside(directory, LOCK.parent.name)
    with os.fdopen(open_inside(directory, LOCK, os.O_RDWR | os.O_CREAT), "rb") as file:
        deadline = time.monotonic() + PATIENCE
        while not _locked(file):
            if time.monotonic() > deadline:
                raise ConfigError(in_use(directory, key))
            time.sleep(PATIENCE / 10)
        yield


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def in_use(directory: Path, key: str = "resume-from") -> str:
    """Return what is said of a run directory that another process holds."""
    return f"{key}: '{directory}' is in use, another process writes there; wait for it, or end it"


def is_held(directory: Path) -> bool | None:
    """Return whether a process writes in a run directory; None where that cannot be told."""
    try:
        with os.fdopen(open_inside(directory, LOCK, os.O_RDONLY), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except (OSError, DataError):
        return None
