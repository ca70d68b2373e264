"""Where the files of datasets are, and what is said when they can be neither found nor downloaded."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disue.errors import DataError

logger = logging.getLogger(__name__)


def given_directory(data_dir: str) -> Path:
    """Return the directory that ``data-dir`` names; raise `DataError` if it cannot be read."""
    try:
        directory = Path(data_dir).expanduser()
        readable = os.access(directory, os.R_OK | os.X_OK) and directory.is_dir()
    except (OSError, RuntimeError) as error:
        raise DataError(f"data-dir: '{data_dir}' cannot be used ({error})") from None
    if not readable:
        raise DataError(f"data-dir: '{data_dir}' is not a directory that can be read")
    return directory


def cache_directory(data_dir: Path | None) -> Path:
    """Return where files are downloaded to."""
    return data_dir or Path.home() / ".cache" / "disue"


def download(name: str, fetch: Callable[[], Any], advice: str, places: list[Path]) -> Any:
    """Return what ``fetch`` downloads; raise `DataError`, with advice, if it cannot.

    ``places``: where the files of the dataset are not.
    """
    logger.info("%s: not found in %s; downloading", name, ", ".join(map(str, places)))
    try:
        return fetch()
    except Exception as error:  # torchvision raises many kinds: URLError, RuntimeError, OSError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name}: no data files in {' or '.join(map(str, places))} and the download failed ({reason}); "
            f"{advice} into a directory and name it with data-dir"
        ) from error
