"""Images of any size, kind and number of channels, made to what a model takes. The rules are in the docstrings."""

import math
import os
import warnings
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from disue.errors import DataError
from disue.npy import read_npz
from disue.task import Shape

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
LUMINANCE = (0.299, 0.587, 0.114)
"""Red, green and blue in grey (ITU-R BT.601)."""
CHUNK = 256
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Those that are read, whatever a file is called: Pillow knows others, one of which starts a program to be read."""


def images_below(directory: Path) -> list[Path]:
    """Return the image files below a directory, by their endings, sorted by path.

    Hidden files and folders are left alone; symbolic links to folders are not followed.

    Raises
    ------
    OSError
        If a folder may not be read: its images would be missing in silence.
    """
    found: list[Path] = []
    for folder, folders, files in os.walk(directory, onerror=_give_up):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found)


def _give_up(error: OSError) -> None:
    raise error


def fit_to(x: Tensor, shape: Shape) -> Tensor:
    """Return inputs, (samples, channels, height, width), resized and with their channels made ``shape``'s.

    Grey becomes colour by repetition, colour becomes grey by luminance; sizes change bilinearly, with antialiasing.
    """
    channels, height, width = shape
    if x.shape[1] == 3 and channels == 1:
        x = (x * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    x = x.expand(-1, channels, -1, -1)
    if x.shape[2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x.contiguous()


def read_image(path: Path, channels: int, name: str) -> Tensor:
    """Read a file as pixels in 0..1, (1, channels, height, width).

    It is turned as its EXIF data say. Palettes are looked up and transparency is dropped; grey of 16 bits is divided by
    65535, all else is read as 8 bits and divided by 255. Of an animation the first frame counts.

    Parameters
    ----------
    path : Path
    channels : int
        1 (grey) or 3 (colour).
    name : str
        What the file is called in an error.

    Raises
    ------
    DataError
        If it is not an image that can be read, or has more than 89,478,485 pixels (Pillow's limit for harmless ones).
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is odd in it
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                pixels = _pixels(ImageOps.exif_transpose(image), channels)
    except Exception as error:  # every format has a decoder of its own, with errors of its own
        raise DataError(f"'{name}' cannot be read ({_reason(error, path)})") from None
    x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    return x.expand(-1, channels, -1, -1)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Return (height, width, channels) in 0..1; of 16 bits, one channel."""
    if image.mode == "F":
        raise ValueError("pixels are floats; put such images into an .npz file")
    if image.mode.startswith("I"):
        pixels = np.array(image, dtype=np.float32)[..., None]
        pixels /= 65535.0
    else:
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32)
        pixels = pixels.reshape(*image.size[::-1], channels)
        pixels /= 255.0
    if pixels.min() < 0.0 or pixels.max() > 1.0:
        raise ValueError("pixels have more than 16 bits")
    return pixels


def _reason(error: Exception, path: Path) -> str:
    """Return why, without the path: who reads it need not know where another one's files are."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return reason.replace(str(path), path.name)


def read_images(paths: Sequence[Path], shape: Shape, names: Sequence[str]) -> Tensor:
    """Return files as pixels in 0..1, (files, channels, height, width); see `read_image` and `fit_to`."""
    x = _room(len(paths), shape)
    for i, (path, name) in enumerate(zip(paths, names, strict=True)):
        x[i] = fit_to(read_image(path, shape[0], name), shape)[0]
    return x.clamp_(0.0, 1.0)  # antialiasing overshoots by rounding


def read_arrays(path: Path, name: str, needed: Set[str], wished: Set[str] = frozenset()) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Parameters
    ----------
    path : Path
    name : str
        What the file is called in an error.
    needed : set of str
        The arrays that must be in it.
    wished : set of str
        Those that are read, too, if they are.

    Raises
    ------
    DataError
        If it cannot be read, is no such file of plain arrays, or lacks one that is needed.
    """
    try:
        arrays = read_npz(path, needed | wished)
    except OSError as error:
        raise DataError(f"'{name}' cannot be read ({error.strerror or 'it is damaged'})") from None
    except ValueError as error:
        raise DataError(f"'{name}' cannot be read (not an .npz file of plain arrays: {error})") from None
    if missing := needed - arrays.keys():
        raise DataError(f"'{name}' has no array {' and no array '.join(sorted(missing))}")
    return arrays


def _room(count: int, shape: Shape) -> Tensor:
    """Return a tensor for so many images; raise `DataError` if they do not fit into the memory that is free."""
    needed, free = 4 * count * math.prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{count:,} images of {'x'.join(map(str, shape))} pixels take {needed / 1e9:,.1f} GB of memory; "
            f"{free / 1e9:,.1f} GB are free"
        )
    return torch.empty(count, *shape)


def from_array(x: np.ndarray, shape: Shape) -> Tensor:
    """Return an array of images as pixels in 0..1, (examples, channels, height, width).

    Three axes are (examples, height, width) in grey. Of four, the last or the second counts the channels: 1 or 3. Bytes
    (uint8) are divided by 255; floats must be from 0 to 1 and are taken as they are.

    Raises
    ------
    DataError
        If the array has other axes, another type or other values.
    """
    with_channels = _channels_first(x)
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"x is {x.dtype}; expected uint8 from 0 to 255, or floats from 0 to 1")
    if x.dtype != np.uint8 and x.size:
        low, high = float(x.min()), float(x.max())
        if not (low >= 0.0 and high <= 1.0):  # also if one is not a number
            raise DataError(f"x has floats from {low:g} to {high:g}; expected numbers from 0 to 1")
    converted = _room(len(x), shape)
    for start in range(0, len(x), CHUNK):
        chunk = np.ascontiguousarray(with_channels[start : start + CHUNK], dtype=np.float32)
        pixels = torch.from_numpy(chunk / np.float32(255.0) if x.dtype == np.uint8 else chunk)
        converted[start : start + CHUNK] = fit_to(pixels, shape)
    return converted.clamp_(0.0, 1.0)


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3 and min(x.shape[1:]) > 0:
        return x[:, None]
    if x.ndim == 4 and min(x.shape[1:]) > 0:
        first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if first != last:
            return x if first else x.transpose(0, 3, 1, 2)
        if first and last:
            raise DataError(
                f"x is {x.shape}; the second and the last axis could both be channels, use (n, height, width)"
            )
    raise DataError(
        f"x is {x.shape}; expected (n, height, width), (n, height, width, channels) or (n, channels, height, width) "
        "with 1 or 3 channels"
    )
