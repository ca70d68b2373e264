"""Datasets that are read from files that are already there, and are else downloaded by torchvision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from disue.data.datasets import DATASETS, Dataset, Examples, FileDataset
from disue.data.downloads import cache_directory, download
from disue.data.idx import IDX_FILES, find_idx_files, read_idx
from disue.errors import DataError
from disue.tasks.images import SMALLEST_SIDE
from disue.torchvision_compat import torchvision

# --- idx files: mnist, fashion-mnist --------------------------------------------------------------


def _read_part(images: Path, labels: Path) -> Examples:
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or min(x.shape) < 1 or min(x.shape[1:]) < SMALLEST_SIDE:
        raise DataError(f"{images}: has {tuple(x.shape)}; expected images of at least {SMALLEST_SIDE} pixels a side")
    if y.ndim != 1 or not len(y):
        raise DataError(f"{labels}: has {tuple(y.shape)}; expected labels")
    return Examples(x.unsqueeze(1), y.long())


@dataclass(frozen=True, kw_only=True)
class _IdxDataset(FileDataset):
    name: str
    torchvision_class: str
    class_names: tuple[str, ...]
    mean: float
    std: float
    usual_places: tuple[Path, ...] = ()

    def __call__(self, data_dir: Path | None) -> Dataset:
        files = find_idx_files(self._places(data_dir)) or self._downloaded(data_dir)
        train, test = (_read_part(files[part, "x"], files[part, "y"]) for part in ("train", "test"))
        if train.x.shape[1:] != test.x.shape[1:]:
            sizes = f"train images are {tuple(train.x.shape[2:])}, test images {tuple(test.x.shape[2:])}"
            raise DataError(f"{self.name}: {sizes}")
        for part, examples in (("train", train), ("test", test)):
            if len(examples.x) != len(examples.y) or int(examples.y.max()) >= len(self.class_names):
                raise DataError(
                    f"{self.name}: the {part} files do not fit: {len(examples.x)} images, {len(examples.y)} labels "
                    f"up to {int(examples.y.max())}, {len(self.class_names)} classes"
                )
        return Dataset(self.name, self.class_names, train, test, (self.mean,), (self.std,))

    def missing_from(self, data_dir: Path | None) -> list[Path]:
        places = self._places(data_dir)
        return [] if find_idx_files(places) else places

    def _downloaded(self, data_dir: Path | None) -> dict[tuple[str, str], Path]:
        wanted = ", ".join(f"{file}[.gz]" for file in IDX_FILES.values())
        fetch = partial(getattr(torchvision().datasets, self.torchvision_class), cache_directory(data_dir))
        download(self.name, partial(fetch, download=True), f"put {wanted}", self._places(data_dir))
        files = find_idx_files([self._raw(data_dir)])
        if files is None:
            raise DataError(f"{self.name}: the download to {self._raw(data_dir)} is not complete")
        return files

    def _places(self, data_dir: Path | None) -> list[Path]:
        return [*([data_dir] if data_dir else self.usual_places), self._raw(data_dir)]

    def _raw(self, data_dir: Path | None) -> Path:
        """Return where torchvision puts the files."""
        return cache_directory(data_dir) / self.torchvision_class / "raw"


DATASETS.register("fashion-mnist")(
    _IdxDataset(
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
    _IdxDataset(
        name="mnist",
        torchvision_class="MNIST",
        class_names=tuple("0123456789"),
        mean=0.1307,
        std=0.3081,
    )
)


# --- through torchvision: cifar10, cifar100, svhn -------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _TorchvisionDataset(FileDataset):
    name: str
    torchvision_class: str
    part_argument: Callable[[str], dict[str, Any]]
    advice: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, data_dir: Path | None) -> Dataset:
        parts = {}
        class_names: tuple[str, ...] = ()
        for part in ("train", "test"):
            source = self._opened(data_dir, part)
            if source is None:
                fetch = partial(self._open, data_dir, part, download=True)
                source = download(self.name, fetch, self.advice, [cache_directory(data_dir)])
            x = np.ascontiguousarray(source.data)
            x = x if x.shape[1] == 3 else x.transpose(0, 3, 1, 2)
            y = np.asarray(source.targets if hasattr(source, "targets") else source.labels)
            parts[part] = Examples(torch.from_numpy(np.ascontiguousarray(x)), torch.as_tensor(y).long())
            class_names = tuple(getattr(source, "classes", "0123456789"))
        return Dataset(self.name, class_names, parts["train"], parts["test"], self.mean, self.std)

    def missing_from(self, data_dir: Path | None) -> list[Path]:
        there = all(self._opened(data_dir, part) is not None for part in ("train", "test"))
        return [] if there else [cache_directory(data_dir)]

    def _opened(self, data_dir: Path | None, part: str) -> Any | None:
        try:
            return self._open(data_dir, part, download=False)
        except RuntimeError:  # "Dataset not found or corrupted": torchvision checked the files' sums
            return None

    def _open(self, data_dir: Path | None, part: str, *, download: bool) -> Any:
        dataset_class = getattr(torchvision().datasets, self.torchvision_class)
        return dataset_class(cache_directory(data_dir), download=download, **self.part_argument(part))


def _train_flag(part: str) -> dict[str, Any]:
    return {"train": part == "train"}


def _split_name(part: str) -> dict[str, Any]:
    return {"split": part}


DATASETS.register("cifar10")(
    _TorchvisionDataset(
        name="cifar10",
        torchvision_class="CIFAR10",
        part_argument=_train_flag,
        advice="put the unpacked folder cifar-10-batches-py",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
)
DATASETS.register("cifar100")(
    _TorchvisionDataset(
        name="cifar100",
        torchvision_class="CIFAR100",
        part_argument=_train_flag,
        advice="put the unpacked folder cifar-100-python",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )
)
DATASETS.register("svhn")(
    _TorchvisionDataset(
        name="svhn",
        torchvision_class="SVHN",
        part_argument=_split_name,
        advice="put train_32x32.mat and test_32x32.mat",
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    )
)
