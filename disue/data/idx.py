"""Files of the idx format, in which MNIST and its relatives come (http://yann.lecun.com/exdb/mnist)."""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from disue.errors import DataError

IDX_FILES = {
    ("train", "x"): "train-images-idx3-ubyte",
    ("train", "y"): "train-labels-idx1-ubyte",
    ("test", "x"): "t10k-images-idx3-ubyte",
    ("test", "y"): "t10k-labels-idx1-ubyte",
}
"""Part of a dataset, and inputs or targets -> name of the file, without `.gz`."""
MOST_IDX_BYTES = 2**30
"""Of data in one file; MNIST's training images have 47 million."""


def find_idx_files(directories: list[Path]) -> dict[tuple[str, str], Path] | None:
    """Return the files of the first directory that has all of them, by part and kind; None: there is none."""
    for directory in directories:
        found = {
            key: path
            for key, name in IDX_FILES.items()
            for path in (directory / f"{name}.gz", directory / name)
            if path.is_file()
        }
        if len(found) == len(IDX_FILES):
            return found
    return None


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, plain or gzipped.

    torchvision's reader takes any size that the header says, and checks neither that nor what follows.

    Raises
    ------
    DataError
        If the file is not an idx file of unsigned bytes, or is cut short.
    """
    try:
        with path.open("rb") as file:
            return _read_idx(path, gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read_idx(path: Path, file: BinaryIO | gzip.GzipFile) -> Tensor:
    start = file.read(4)
    if start[:3] != b"\x00\x00\x08" or len(start) < 4:
        raise DataError(f"{path}: not an idx file of unsigned bytes")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3] or not sizes:
        raise DataError(f"{path}: damaged; the header is cut short")
    shape = np.frombuffer(sizes, dtype=">u4").astype(int).tolist()
    announced = math.prod(shape)
    if math.prod(max(size, 1) for size in shape) > MOST_IDX_BYTES:  # beside a 0, too: torch multiplies them
        raise DataError(f"{path}: the header says {shape}; at most {MOST_IDX_BYTES} bytes are read")
    content = file.read(announced + 1)
    if len(content) != announced:
        follow = str(len(content)) if len(content) < announced else "more"
        raise DataError(f"{path}: damaged; the header says {announced} bytes, {follow} follow")
    return torch.tensor(np.frombuffer(content, dtype=np.uint8)).view(shape)
