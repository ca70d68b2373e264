"""The server's proxy set: unlabelled inputs on which the experts teach the universal expert."""

import logging
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from disue.config import ClientConfig, Settings
from disue.data import RunData, load_dataset
from disue.data.folders import Found, search
from disue.data.image_files import fit_to, look_at_images
from disue.errors import LOGGER, ConfigError, DataError
from disue.files import user_path
from disue.seeding import numpy_rng
from disue.tasks import ImageShape, Task

USUAL_SIZE = 2000
MOST_BYTES = 2**28
"""Of all views together."""
MIN_SIZE = 10
logger = logging.getLogger(LOGGER)


class ProxySettings(Settings):
    """The proxy set."""

    proxy: str = Field(
        "holdout",
        description="the server's proxy set: `holdout` (of the task's data), `dataset:NAME`, `path:DIR` (images), or "
        "`generator` (no data)",
    )

    proxy_samples: int = Field(
        4000,
        ge=0,
        le=10**6,
        description="about so many samples, of which a fifth is held out, teach a student: the images of a fixed proxy "
        "set, and randomly shifted copies of all of them, drawn anew in each round; 256 MiB of copies at most, and no "
        "copies if there are as many images, or with 0",
    )
    proxy_shift: float = Field(
        0.075,
        ge=0.0,
        le=0.5,
        description="largest shift of such a copy, as a share of the image's side",
    )

    @field_validator("proxy")
    @classmethod
    def _known_kind_of_proxy(cls, value: str) -> str:
        kind, separator, where = value.partition(":")
        if value not in ("holdout", "generator") and not (kind in ("dataset", "path") and separator and where):
            raise ValueError("use holdout, dataset:NAME, path:DIR or generator")
        return value


def load_proxy(config: ClientConfig, data: RunData) -> Tensor:
    """Return the configured proxy set, (samples, *shape), as the task's models take it.

    ``holdout``: unlabelled part of the task's own data. ``dataset:NAME``: the inputs of another dataset, normalised by
    its own mean and deviation. ``path:DIR``: all images below a directory, normalised as the task's are.

    Raises
    ------
    ConfigError
        If there is no such dataset, the server has none of the task's own data, or pictures are named and the task's
        inputs are none.
    DataError
        If the data are missing, cannot be read, or are too few.
    """
    proxy, remarks = look_at_proxy(config, data)
    for remark in remarks:
        logger.warning(remark)
    return proxy


def look_at_proxy(config: ClientConfig, data: RunData) -> tuple[Tensor, list[str]]:
    """Return what `load_proxy` does, and lines on what is left out or odd, which are not logged."""
    named = ProxySettings.of(config).proxy
    kind, _, where = named.partition(":")
    if kind == "holdout":
        return data.proxy(), []
    shape = require_images(named, data.task)
    rng = numpy_rng(config.seed, "proxy")
    if kind == "dataset":
        try:
            other = load_dataset(where, config.data_dir)
        except ConfigError as error:
            raise ConfigError(f"proxy: got '{named}'; {error}") from None
        chosen = rng.permutation(len(other.train))[: config.proxy_size or USUAL_SIZE]
        return fit_to(other.normalise(other.train.x[torch.from_numpy(np.sort(chosen))]), shape), []
    found = _search(user_path(where, "proxy"))
    chosen = rng.permutation(len(found.paths))[: config.proxy_size or USUAL_SIZE]
    proxy, remarks = read_proxy([found.paths[i] for i in sorted(chosen)], data.task)
    return proxy, [*found.told, *remarks]


def require_images(proxy: str, task: Task) -> ImageShape:
    """Return the shape of the task's images; raise `ConfigError` where its inputs are none, and the proxy set's are."""
    if task.image_shape is None:
        sizes = "x".join(map(str, task.shape))
        raise ConfigError(
            f"proxy: got '{proxy}', which is of images; the inputs of this task are none (shape {sizes}), use holdout"
        )
    return task.image_shape


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


def read_proxy(paths: list[Path], task: Task) -> tuple[Tensor, list[str]]:
    """Read images as a task's models take them, (images, channels, height, width); and lines on what is odd about them.

    The last ones are kept in memory until the files change: a run looks at them before it starts.

    Parameters
    ----------
    paths : list of Path
    task : Task
        One of images.

    Raises
    ------
    DataError
        If a file is not an image that can be read, or is too large to be a harmless one.
    """
    try:
        statuses = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(f"proxy: '{error.filename}' cannot be read ({error.strerror})") from None
    return _read(tuple(paths), tuple((status.st_mtime_ns, status.st_size) for status in statuses), task)


@lru_cache(maxsize=1)
def _read(paths: tuple[Path, ...], _changed: tuple[tuple[int, int], ...], task: Task) -> tuple[Tensor, list[str]]:
    try:
        pixels, remarks = look_at_images(paths, task.shape, [str(path) for path in paths])
    except DataError as error:
        raise DataError(f"proxy: {error}") from None
    return task.normalise(pixels), remarks
