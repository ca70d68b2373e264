"""Image classification datasets behind one interface.

`digits` ships with scikit-learn. The others are read from files that are already there and are else
downloaded by torchvision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disue.data.downloads import cache_directory, download, given_directory
from disue.data.idx import IDX_FILES, find_idx_files, read_idx
from disue.errors import DataError
from disue.registry import Registry
from disue.tasks import ImageClassification
from disue.tasks.images import SMALLEST_SIDE
from disue.torchvision_compat import torchvision


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
    """Raw images (uint8) with the numbers that normalise them.

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


# --- own: not a dataset that could be loaded ------------------------------------------------------


@DATASETS.register(OWN)
def _own(_data_dir: Path | None) -> Dataset:
    raise DataError(
        f"dataset: got '{OWN}'; that is what clients on real machines have, where data-path in their node config says, "
        "and neither a server nor a simulation has it"
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


# --- idx files: mnist, fashion-mnist --------------------------------------------------------------


def _read_part(images: Path, labels: Path) -> Examples:
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or min(x.shape) < 1 or min(x.shape[1:]) < SMALLEST_SIDE:
        raise DataError(f"{images}: has {tuple(x.shape)}; expected images of at least {SMALLEST_SIDE} pixels a side")
    if y.ndim != 1 or not len(y):
        raise DataError(f"{labels}: has {tuple(y.shape)}; expected labels")
    return Examples(x.unsqueeze(1), y.long())


def _idx_dataset(
    data_dir: Path | None,
    *,
    name: str,
    torchvision_class: str,
    class_names: tuple[str, ...],
    mean: float,
    std: float,
    usual_places: tuple[Path, ...] = (),
) -> Dataset:
    cache = cache_directory(data_dir)
    downloaded = cache / torchvision_class / "raw"
    places = [cache, downloaded] if data_dir else [*usual_places, downloaded]
    files = find_idx_files(places)
    if files is None:
        wanted = ", ".join(f"{file}[.gz]" for file in IDX_FILES.values())
        dataset_class = getattr(torchvision().datasets, torchvision_class)
        download(name, lambda: dataset_class(cache, download=True), f"put {wanted}", places)
        files = find_idx_files([downloaded])
        if files is None:
            raise DataError(f"{name}: the download to {downloaded} is not complete")
    train, test = (_read_part(files[part, "x"], files[part, "y"]) for part in ("train", "test"))
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"{name}: train images are {tuple(train.x.shape[2:])}, test images {tuple(test.x.shape[2:])}")
    for part, examples in (("train", train), ("test", test)):
        if len(examples.x) != len(examples.y) or int(examples.y.max()) >= len(class_names):
            raise DataError(
                f"{name}: the {part} files do not fit: {len(examples.x)} images, {len(examples.y)} labels "
                f"up to {int(examples.y.max())}, {len(class_names)} classes"
            )
    return Dataset(name, class_names, train, test, (mean,), (std,))


DATASETS.register("fashion-mnist")(
    partial(
        _idx_dataset,
        name="fashion-mnist",
        torchvision_class="FashionMNIST",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mean=0.2860,
        std=0.3530,
        usual_places=(Path("/usr/share/datasets/fashion-mnist"),),
    )
)
DATASETS.register("mnist")(
    partial(
        _idx_dataset,
        name="mnist",
        torchvision_class="MNIST",
        class_names=tuple("0123456789"),
        mean=0.1307,
        std=0.3081,
    )
)


# --- through torchvision: cifar10, cifar100, svhn -------------------------------------------------


def _torchvision_dataset(
    data_dir: Path | None,
    *,
    name: str,
    torchvision_class: str,
    part_argument: Callable[[str], dict[str, Any]],
    advice: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    root = cache_directory(data_dir)
    parts = {}
    class_names: tuple[str, ...] = ()
    for part in ("train", "test"):
        open_part = partial(getattr(torchvision().datasets, torchvision_class), root, **part_argument(part))
        try:
            source = open_part(download=False)
        except RuntimeError:  # "Dataset not found or corrupted": torchvision checked the files' sums
            source = download(name, partial(open_part, download=True), advice, [root])
        x = np.ascontiguousarray(source.data)
        x = x if x.shape[1] == 3 else x.transpose(0, 3, 1, 2)
        labels = source.targets if hasattr(source, "targets") else source.labels
        parts[part] = Examples(torch.from_numpy(np.ascontiguousarray(x)), torch.as_tensor(np.asarray(labels)).long())
        class_names = tuple(getattr(source, "classes", "0123456789"))
    return Dataset(name, class_names, parts["train"], parts["test"], mean, std)


def _train_flag(part: str) -> dict[str, Any]:
    return {"train": part == "train"}


def _split_name(part: str) -> dict[str, Any]:
    return {"split": part}


DATASETS.register("cifar10")(
    partial(
        _torchvision_dataset,
        name="cifar10",
        torchvision_class="CIFAR10",
        part_argument=_train_flag,
        advice="put the unpacked folder cifar-10-batches-py",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
)
DATASETS.register("cifar100")(
    partial(
        _torchvision_dataset,
        name="cifar100",
        torchvision_class="CIFAR100",
        part_argument=_train_flag,
        advice="put the unpacked folder cifar-100-python",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )
)
DATASETS.register("svhn")(
    partial(
        _torchvision_dataset,
        name="svhn",
        torchvision_class="SVHN",
        part_argument=_split_name,
        advice="put train_32x32.mat and test_32x32.mat",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    )
)
