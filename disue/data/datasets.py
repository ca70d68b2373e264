"""Image classification datasets behind one interface.

`digits` ships with scikit-learn. Those that are read from files are in `from_files`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disue.data.downloads import given_directory
from disue.errors import DataError
from disue.registry import Registry
from disue.tasks import ImageClassification


@dataclass(frozen=True)
class Examples:
    """Inputs, (examples, *shape), and targets, (examples, ...): what they are, the task says."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> "Examples":
        return Examples(self.x[index], self.y[index])


@dataclass(frozen=True)
class Dataset:
    """Raw images with the numbers that normalise them.

    ``mean`` and ``std`` are per channel, of pixel values divided by ``maximum``.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    test: Examples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    maximum: float = 255.0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one input."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def task(self) -> ImageClassification:
        """What a run on these data is about."""
        return ImageClassification(self.class_names, self.shape, self.mean, self.std)

    def normalise(self, x: Tensor) -> Tensor:
        """Return raw pixels as float32 with about zero mean and unit variance per channel."""
        return self.task.normalise(x.float() / self.maximum)


OWN = "own"
"""The config value that stands for clients with data of their own; see `disue.data.own`."""

Loader = Callable[[Path | None], Dataset]
DATASETS: Registry[Loader] = Registry("dataset")


class FileDataset(ABC):
    """A loader that reads files, and has them downloaded where there are none."""

    @abstractmethod
    def __call__(self, data_dir: Path | None) -> Dataset:
        """Return the dataset."""

    @abstractmethod
    def missing_from(self, data_dir: Path | None) -> list[Path]:
        """Return the places that do not have the files, or damaged ones; empty: they need no download."""


@lru_cache(maxsize=4)
def load_dataset(name: str, data_dir: str = "") -> Dataset:
    """Load a dataset by its config name; kept in memory for the next caller in this process.

    Parameters
    ----------
    name : str
        A name in `DATASETS`.
    data_dir : str
        Where the files are looked for first, and downloaded to. Empty: the usual places.

    Raises
    ------
    ConfigError
        If there is no such dataset.
    DataError
        If its files are neither there nor to be downloaded, or are damaged.
    """
    load = DATASETS[name]
    return load(given_directory(data_dir) if data_dir else None)


def missing_from(name: str, data_dir: str = "") -> list[Path]:
    """Return where the files of a dataset were looked for in vain; empty: it can be read without a download.

    Parameters
    ----------
    name : str
        A name in `DATASETS`.
    data_dir : str
        As for `load_dataset`.

    Raises
    ------
    ConfigError
        If there is no such dataset.
    DataError
        If the directory cannot be read.
    """
    load = DATASETS[name]
    directory = given_directory(data_dir) if data_dir else None
    return load.missing_from(directory) if isinstance(load, FileDataset) else []


# --- own: not a dataset that could be loaded ------------------------------------------------------


@DATASETS.register(OWN)
def _own(_data_dir: Path | None) -> Dataset:
    raise DataError(
        f"dataset: got '{OWN}'; that is what clients on real machines have, where data-path in their node config says; "
        "a simulation has none, unless own-data names a folder of them"
    )


# --- digits ---------------------------------------------------------------------------------------


@DATASETS.register("digits")
def _digits(_data_dir: Path | None) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(y)), test_size=0.25, stratify=bunch.target, random_state=0)
    return Dataset(
        name="digits",
        class_names=tuple("0123456789"),
        train=Examples(x[train], y[train]),
        test=Examples(x[test], y[test]),
        mean=(0.305,),
        std=(0.376,),
        maximum=16.0,
    )
