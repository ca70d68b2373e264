"""Images from anywhere, without labels, as pixels that a run's models take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from disue.data.folders import search
from disue.data.image_files import from_array, read_arrays, read_images, tell_of_others
from disue.errors import DataError
from disue.files import user_path
from disue.tasks import Shape

Images = str | Path | Sequence[str | Path] | np.ndarray | Tensor
"""What a model of a run takes: a file or a folder or several of them (see `read_inputs`), or an array (see
`disue.data.image_files.from_array`); an array with two axes is one grey image."""


@dataclass(frozen=True)
class Inputs:
    """Pixels in 0..1, (images, channels, height, width), and where each image comes from."""

    names: list[str]
    pixels: Tensor


def to_pixels(x: Images, shape: Shape) -> Tensor:
    """Return images as pixels in 0..1, (images, channels, height, width).

    Raises
    ------
    DataError
        If a file cannot be read, or an array cannot be images.
    """
    if isinstance(x, Tensor):
        x = (x.float() if x.is_floating_point() else x).numpy(force=True)
    if isinstance(x, np.ndarray | np.generic):
        return from_array(x[None] if x.ndim == 2 else np.asarray(x), shape)
    paths = [x] if isinstance(x, str | Path) else list(x) if isinstance(x, Sequence) else []
    if not paths or not all(isinstance(path, str | Path) for path in paths):
        raise DataError(f"got {x!r:.60}; expected the paths of images, an array or a tensor")
    return read_inputs([Path(path) for path in paths], shape).pixels


def read_inputs(paths: Sequence[Path], shape: Shape) -> Inputs:
    """Read image files, all images below folders, and the array ``x`` of ``.npz`` files, in the order given.

    Raises
    ------
    DataError
        If there is nothing at a path, a folder has no images, or a file cannot be read: one line that names it.
    """
    parts = [_read(user_path(path), shape) for path in paths]
    return Inputs([name for part in parts for name in part.names], torch.cat([part.pixels for part in parts]))


def _read(path: Path, shape: Shape) -> Inputs:
    if path.suffix.lower() == ".npz" and path.is_file():
        return _read_npz(path, shape)
    if not path.exists():
        raise DataError(f"'{path}' does not exist; name images, folders of images or .npz files")
    files = _images_of(path) if path.is_dir() else [path]
    names = [str(file) for file in files]
    return Inputs(names, read_images(files, shape, names))


def _images_of(folder: Path) -> list[Path]:
    try:
        found = search(folder)
    except OSError as error:
        raise DataError(f"'{error.filename}' cannot be read ({error.strerror})") from None
    if not found.paths:
        raise DataError(f"'{folder}' has no images{found.excuse}")
    found.tell()
    return found.paths


def _read_npz(path: Path, shape: Shape) -> Inputs:
    x = read_arrays(path, str(path), {"x"})["x"]
    tell_of_others(path, str(path))
    try:
        pixels = from_array(x, shape)
    except DataError as error:
        raise DataError(f"'{path}': {error}") from None
    if not len(pixels):
        raise DataError(f"'{path}' has no images")
    return Inputs([f"{path}[{i}]" for i in range(len(pixels))], pixels)
