"""The server's proxy set: unlabelled inputs on which the experts teach the universal expert."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disue.config import RunConfig
from disue.data import RunData, load_dataset
from disue.data.folders import Found, search
from disue.data.images import fit_to, read_images
from disue.errors import ConfigError, DataError
from disue.files import user_path
from disue.seeding import numpy_rng
from disue.task import Task

USUAL_SIZE = 2000
MIN_SIZE = 10


def load_proxy(config: RunConfig, data: RunData) -> Tensor:
    """Return the configured proxy set, (samples, channels, height, width), as the task's models take it.

    ``holdout``: unlabelled part of the task's own data. ``dataset:NAME``: the inputs of another dataset, normalised by
    its own mean and deviation. ``path:DIR``: all images below a directory, normalised as the task's are.

    Raises
    ------
    ConfigError
        If there is no such dataset, or the server has none of the task's own data.
    DataError
        If the data are missing, cannot be read, or are too few.
    """
    kind, _, where = config.proxy.partition(":")
    if kind == "holdout":
        return data.proxy()
    rng = numpy_rng(config.seed, "proxy")
    if kind == "dataset":
        try:
            other = load_dataset(where, config.data_dir)
        except ConfigError as error:
            raise ConfigError(f"proxy: got '{config.proxy}'; {error}") from None
        chosen = rng.permutation(len(other.train))[: config.proxy_size or USUAL_SIZE]
        return fit_to(other.normalise(other.train.x[torch.from_numpy(np.sort(chosen))]), data.task.shape)
    found = _search(user_path(where, "proxy"))
    found.tell()
    chosen = rng.permutation(len(found.paths))[: config.proxy_size or USUAL_SIZE]
    return read_proxy([found.paths[i] for i in sorted(chosen)], data.task)


def is_foreign(proxy: str) -> bool:
    """Return whether the proxy set that a config names is of other data than the task's own."""
    return proxy.startswith(("dataset:", "path:"))


def find_images(directory: Path) -> list[Path]:
    """Return the image files below a directory, sorted by path.

    Raises
    ------
    DataError
        If it is not a directory, or has fewer than ten.
    """
    return _search(directory).paths


def _search(directory: Path) -> Found:
    if not directory.is_dir():
        raise DataError(f"proxy: '{directory}' is not a directory")
    try:
        found = search(directory)
    except OSError as error:
        raise DataError(f"proxy: '{error.filename}' cannot be read ({error.strerror})") from None
    if len(found.paths) < MIN_SIZE:
        raise DataError(
            f"proxy: '{directory}' has {len(found.paths)} images; at least {MIN_SIZE} are needed{found.excuse}"
        )
    return found


def read_proxy(paths: list[Path], task: Task) -> Tensor:
    """Read images as a task's models take them, (images, channels, height, width).

    Raises
    ------
    DataError
        If a file is not an image that can be read, or is too large to be a harmless one.
    """
    try:
        return task.normalise(read_images(paths, task.shape, [str(path) for path in paths]))
    except DataError as error:
        raise DataError(f"proxy: {error}") from None
