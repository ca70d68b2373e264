"""A client's own data: a folder of images, one folder per class, or an ``.npz`` file."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disue.data.client_data import MIN_TEST_EXAMPLES, MIN_TRAIN_EXAMPLES, ClientData
from disue.data.datasets import Examples
from disue.data.folders import images_below, search
from disue.data.image_files import from_array, read_arrays, read_images, tell_of_others
from disue.data.scenarios import NO_GROUP
from disue.errors import LOGGER, DataError
from disue.naming import normal_name, quoted
from disue.seeding import torch_rng
from disue.tasks import DataSummary, ImageClassification, Shape
from disue.tasks.classification import doubts

KEPT = 4
"""How many clients' data a process keeps in memory: one on a real machine, some in the inline engine."""
logger = logging.getLogger(LOGGER)

Fingerprint = tuple[tuple[str, int, int, int, int], ...]
"""Of each file the name, the times at which its content and anything of it changed, its size and its number."""


@dataclass(frozen=True)
class OwnData:
    """Pixels in 0..1, (examples, channels, height, width), labels, and the names (NFC) of the classes that occur."""

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class OwnSplit:
    """A client's own data in two disjoint parts; no class is in the test part only."""

    data: OwnData
    train: Tensor
    test: Tensor

    def summary(self) -> DataSummary:
        """Return what the server is told, so that a task can be agreed on; raise `DataError` for unusable names."""
        pixels = self.data.x[self.train].double()
        deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
        try:
            return DataSummary(self.data.class_names, tuple(mean.tolist()), tuple(deviation.tolist()))
        except ValueError as error:
            raise DataError(str(error)) from None

    def for_task(self, task: ImageClassification) -> ClientData:
        """Return the examples as the task's models take them.

        Raises
        ------
        DataError
            If the task lacks one of the classes, or has images of another shape.
        """
        if self.data.x.shape[1:] != task.shape:
            raise DataError(f"the images are {tuple(self.data.x.shape[1:])}; the run's are {task.shape}")
        labels = task.indices(self.data.class_names)[self.data.y]
        train, test = (Examples(task.normalise(self.data.x[part]), labels[part]) for part in (self.train, self.test))
        return ClientData(train, test, NO_GROUP)


def open_own(
    data_path: str, shape: Shape, test_fraction: float, seed: int, name: str, what: str = "data-path"
) -> OwnSplit:
    """Return a client's own data, converted and split; kept in memory until the files change.

    Parameters
    ----------
    data_path : str
        A folder with a folder of images for each class, or an ``.npz`` file with ``x``, ``y`` and, if wished,
        ``classes``.
    shape : tuple of int
        Channels, height and width that the images are converted to; see `disue.data.image_files`.
    test_fraction : float
        Share of each class that is held out.
    seed : int
        The run seed.
    name : str
        The client's name; with the seed it decides which examples are held out.
    what : str (default: "data-path")
        What errors call the place.

    Raises
    ------
    DataError
        If there is nothing there, a file cannot be used, or there are too few examples. It names files relative to
        the data path, because the server gets to read it.
    """
    try:
        root = Path(data_path).expanduser()
        fingerprint = _fingerprint(root, what)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{what} cannot be read ({_why(error)})") from None
    return _open(root, fingerprint, shape, test_fraction, seed, name, what)


@lru_cache(maxsize=KEPT)
def _open(
    root: Path, _fingerprint: Fingerprint, shape: Shape, test_fraction: float, seed: int, name: str, what: str
) -> OwnSplit:
    data = read_own(root, shape, what)
    if doubt := doubts(len(data.class_names), len(data.y)):
        logger.warning("%s: %s", name, doubt)
    return OwnSplit(data, *split(data.y, test_fraction, seed, name))


def read_own(root: Path, shape: Shape, what: str = "data-path") -> OwnData:
    """Return all images of a folder of classes, or of an ``.npz`` file; see `open_own`."""
    return _read_folder(root, shape, what) if root.is_dir() else _read_npz(root, shape)


def _fingerprint(root: Path, what: str) -> Fingerprint:
    """Return what is known of the files without reading them; when it changes, they are read anew.

    Two files may be as large as each other and have the time of one archive that both are from. The other time, which
    nobody sets, and the number of the file tell them apart.
    """
    if not root.is_dir():
        if root.suffix.lower() != ".npz" or not root.is_file():
            raise DataError(f"{what} is neither a folder nor an .npz file; is it mounted, and readable to this user?")
        files = [root]
    else:
        files = images_below(root)
    looks = ((str(file), file.stat()) for file in files)
    return tuple((name, own.st_mtime_ns, own.st_ctime_ns, own.st_size, own.st_ino) for name, own in looks)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _read_folder(root: Path, shape: Shape, what: str) -> OwnData:
    found = search(root)
    for pair in found.twice:
        if len({normal_name(name.parts[0]) for name in pair}) > 1:
            raise DataError(
                f"{quoted(sorted(map(str, pair)))} are the same folder, in two classes; remove one of the links"
            )
    names = [path.relative_to(root) for path in found.paths]
    for name in names:
        if len(name.parts) == 1:
            raise DataError(f"'{name}' is in no class; expected a folder of images for each class")
    if not found.paths:
        raise DataError(f"{what} has no images; expected a folder of images for each class{found.excuse}")
    found.tell()
    classes = [normal_name(name.parts[0]) for name in names]
    class_names = tuple(sorted(set(classes)))
    y = torch.tensor([class_names.index(name) for name in classes], dtype=torch.int64)
    return OwnData(read_images(found.paths, shape, [name.as_posix() for name in names]), y, class_names)


def _read_npz(path: Path, shape: Shape) -> OwnData:
    arrays = read_arrays(path, path.name, {"x", "y"}, {"classes"})
    tell_of_others(path, path.name)
    x, y = arrays["x"], arrays["y"]
    try:
        classes, labels = _labels(y, len(x) if x.ndim else 0, arrays.get("classes"))
        return OwnData(from_array(x, shape), labels, classes)
    except DataError as error:
        raise DataError(f"'{path.name}': {error}") from None


def _labels(y: np.ndarray, num_examples: int, told: np.ndarray | None) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the classes that occur, and each example's index among them."""
    if y.ndim != 1 or len(y) != num_examples or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"y is {y.dtype} {y.shape}; expected {num_examples} integers, one for each image")
    if not num_examples:
        raise DataError("x has no images")
    if int(y.min()) < 0:
        raise DataError(f"y has the label {int(y.min())}; expected 0 or more")
    if told is not None and (told.ndim != 1 or told.dtype.kind != "U"):
        raise DataError("classes is not a list of names, each once")
    known = None if told is None else [normal_name(name) for name in told.tolist()]
    if known is not None and len(set(known)) < len(known):
        raise DataError("classes is not a list of names, each once")
    if known is not None and int(y.max()) >= len(known):
        raise DataError(f"y has the label {int(y.max())}; there are {len(known)} classes, so at most {len(known) - 1}")
    values, labels = np.unique(y, return_inverse=True)
    names = tuple(str(value) if known is None else known[value] for value in values)
    return names, torch.from_numpy(labels.astype(np.int64))


def split(y: Tensor, test_fraction: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and of the test examples, each sorted.

    Of each class the given share is held out, rounded, but never all of it. If that holds nothing out, one example of
    the largest class is.

    Raises
    ------
    DataError
        If there are too few examples for both parts.
    """
    rng = torch_rng(seed, "own-data", name)
    counts = torch.bincount(y)
    sizes = [max(0, min(round(test_fraction * count), count - 1)) for count in counts.tolist()]
    largest = int(counts.argmax()) if len(counts) else 0
    if sum(sizes) < MIN_TEST_EXAMPLES and len(counts) and int(counts[largest]) > 1:
        sizes[largest] = 1
    held_out = []
    for label, size in enumerate(sizes):
        members = torch.nonzero(y == label).flatten()
        held_out.append(members[torch.randperm(len(members), generator=rng)[:size]])
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[torch.cat(held_out) if held_out else torch.empty(0, dtype=torch.int64)] = True
    train, test = torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()
    if len(train) < MIN_TRAIN_EXAMPLES or len(test) < MIN_TEST_EXAMPLES:
        raise DataError(
            f"{len(y)} images are too few; at least {MIN_TRAIN_EXAMPLES} are needed for training "
            f"and {MIN_TEST_EXAMPLES}, of a class that has more, for the test"
        )
    return train, test
