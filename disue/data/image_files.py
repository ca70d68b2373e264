"""Images of any size, kind and number of channels, made to what a model takes. The rules are in the docstrings."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile
from torch import Tensor
from torch.nn import functional as F

from disue.data.folders import SHOWN, SUFFIXES
from disue.errors import LOGGER, DataError, one_line
from disue.naming import quoted
from disue.npy import array_names, read_npz
from disue.tasks import Shape

LUMINANCE = (0.299, 0.587, 0.114)
"""Red, green and blue in grey (ITU-R BT.601)."""
CHUNK = 256
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Those that are read, whatever a file is called: Pillow knows others, one of which starts a program to be read."""
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What a TIFF begins with, in either order of bytes, the last two if it is a BigTIFF."""
ARRAYS = frozenset({"x", "y", "classes"})
"""The arrays of an ``.npz`` file that have a meaning."""
FAINT = 0.1
"""Ink is laid on black where on white it has less than this share of the contrast."""
logger = logging.getLogger(LOGGER)


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

    It is turned as its EXIF data say. Palettes are looked up. Grey of 16 bits is divided by 65535, grey of 12 bits by
    4095; all else is read as 8 bits and divided by 255. A TIFF in which 0 is white is inverted. Of a file with several
    pictures the first is read.

    What is transparent is laid on white; on black where on white next to nothing would be seen, as of white ink. A
    picture of which neither shows anything is read without its transparency.

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
        TIFFs of signed integers, of integers of more than 16 bits and of floats are refused.
    """
    return _read(path, channels, name)[0]


def _read(path: Path, channels: int, name: str) -> tuple[Tensor, bool]:
    """Return what `read_image` does, and whether the file has further pictures."""
    head = b""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise ValueError("it is no file")
        # Pillow gets an open file: of a path it may map the pixels into memory, and then in the wrong rows.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # of what is odd in it
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            head = file.read(4)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                # A camera's second picture (MPO) is a smaller copy of the first, or the other eye's.
                more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
                _scale_transparency(image)
                white, black = _deep_range(image)
                pixels = _pixels(ImageOps.exif_transpose(image), channels, white, black)
    except Exception as error:  # every format has a decoder of its own, with errors of its own
        raise DataError(f"'{name}' cannot be read ({_reason(error, path, head)})") from None
    x = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    return x.expand(-1, channels, -1, -1), more


def _scale_transparency(image: Image.Image) -> None:
    """Give the transparent colour as many bits as the pixels are read with; Pillow leaves it as it is in the file."""
    told, tile = image.info.get("transparency"), getattr(image, "tile", None)
    kind = tile[0][3] if tile else None
    if image.format == "PNG" and isinstance(told, int) and kind in ("L;2", "L;4"):
        image.info["transparency"] = told * {"L;2": 85, "L;4": 17}[kind]
    elif image.format == "PNG" and isinstance(told, tuple) and kind == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in told)


def _deep_range(image: Image.Image) -> tuple[int, int]:
    """Return what white and what black are in grey of more than 8 bits; Pillow gives such numbers as they are stored.

    Raises
    ------
    ValueError
        If it is a TIFF of integers that Pillow reads wrongly, or whose range is not known.
    """
    if not isinstance(image, TiffImageFile):
        return 65535, 0
    tags, bits = image.tag_v2, image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
    if 2 in tags.get(SAMPLEFORMAT, (1,)):
        raise ValueError(f"pixels are signed integers of {bits} bits; save them as unsigned ones of 8 or 16 bits")
    if image.mode.startswith("I") and bits > 16:
        raise ValueError(f"pixels are integers of {bits} bits; save them with 8 or 16 bits")
    most = 2**bits - 1
    return (0, most) if tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0 else (most, 0)


def _pixels(image: Image.Image, channels: int, deep_white: int, deep_black: int) -> np.ndarray:
    """Return (height, width, channels) in 0..1; of more than 8 bits, one channel."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ValueError("pixels are floats; put such images into an .npz file")
    if image.mode.startswith("I"):
        pixels = (np.array(image, dtype=np.float32) - np.float32(deep_black)) / np.float32(deep_white - deep_black)
        if isinstance(clear := image.info.get("transparency"), int):
            there = pixels != np.float32(clear) / np.float32(65535.0)
            pixels = _laid(pixels, lambda white: np.where(there, pixels, np.float32(white)))
    else:
        pixels = _bytes(image, mode)
        if image.has_transparency_data and (ink := image.convert("RGBA")).getchannel("A").getextrema() != (255, 255):
            grounds = [Image.new("RGBA", ink.size, colour) for colour in ("black", "white")]
            pixels = _laid(pixels, lambda white: _bytes(Image.alpha_composite(grounds[white], ink), mode))
    if pixels.shape[:2] != image.size[::-1]:
        raise ValueError(f"it says {image.size[0]}x{image.size[1]} pixels and has others")
    if pixels.min() < 0.0 or pixels.max() > 1.0:
        raise ValueError("pixels have more than 16 bits")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _bytes(image: Image.Image, mode: str) -> np.ndarray:
    return np.array(image.convert(mode), dtype=np.float32) / np.float32(255.0)


def _laid(alone: np.ndarray, lay: Callable[[bool], np.ndarray]) -> np.ndarray:
    """Return pixels laid on white, on black, or on nothing, whichever is the first to show the ink."""
    on_white, on_black = lay(True), lay(False)
    white, black = (float(pixels.std(axis=(0, 1)).max()) for pixels in (on_white, on_black))
    if max(white, black) == 0.0:
        return alone
    return on_black if white < FAINT * black else on_white


def _reason(error: Exception, path: Path, head: bytes) -> str:
    """Return why, without the path: who reads it need not know where another one's files are."""
    if isinstance(error, UnidentifiedImageError) and head in TIFF_HEADS:
        return "a TIFF that is damaged, or of a kind that is not read; save it as PNG"
    if isinstance(error, UnidentifiedImageError):
        known = path.suffix.lower() in SUFFIXES
        return "not an image" if known else f"not an image of a kind that is read: {', '.join(FORMATS)}"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return reason.replace(str(path), path.name)


def read_images(paths: Sequence[Path], shape: Shape, names: Sequence[str]) -> Tensor:
    """Return files as pixels in 0..1, (files, channels, height, width), and log what is odd; see `look_at_images`."""
    x, remarks = look_at_images(paths, shape, names)
    for remark in remarks:
        logger.warning(remark)
    return x


def look_at_images(paths: Sequence[Path], shape: Shape, names: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Return files as pixels in 0..1, (files, channels, height, width), and lines on what is odd about them.

    See `read_image` and `fit_to`.
    """
    x = _room(len(paths), shape)
    several, blank = [], []
    for i, (path, name) in enumerate(zip(paths, names, strict=True)):
        pixels, more = _read(path, shape[0], name)
        x[i] = fit_to(pixels, shape)[0]
        several += [name] if more else []
        blank += [name] if bool((pixels == pixels[0, :, :1, :1].unsqueeze(0)).all()) else []
    kinds = {"files of which only the first picture is read": several, "pictures in which all pixels are alike": blank}
    remarks = [one_line(f"{kind}: {len(of)} ({quoted(of, SHOWN)})") for kind, of in kinds.items() if of]
    return x.clamp_(0.0, 1.0), remarks  # antialiasing overshoots by rounding


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


def tell_of_others(path: Path, name: str) -> None:
    """Log the arrays of an ``.npz`` file of which nothing is read."""
    if others := sorted(array_names(path) - ARRAYS):
        logger.warning(one_line(f"'{name}': left out: arrays of other names ({quoted(others, SHOWN)})"))


def from_array(x: np.ndarray, shape: Shape) -> Tensor:
    """Return an array of images as pixels in 0..1, (examples, channels, height, width).

    Three axes are (examples, height, width) in grey, and the width is not 1 or 3. Of four, the last or the second
    counts the channels: 1 or 3. Bytes (uint8) are divided by 255; floats must be from 0 to 1 and are taken as they are.

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
    if x.ndim == 3 and x.shape[2] in (1, 3):
        raise DataError(
            f"x is {x.shape}; the last axis looks like channels, use (n, height, width, channels), n=1 for one image"
        )
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
