"""Pictures of every format and mode that Pillow writes, turned in every way that a camera says."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disue.data.image_files import read_image
from disue.errors import DataError

ORIENTATION = 0x0112
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}
"""By the EXIF orientation: what makes the upright picture, (height, width, channels), of the stored one."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F")
WAYS: dict[str, list[dict[str, Any]]] = {
    "png": [{}],
    "jpeg": [{"quality": 95}],
    "webp": [{"lossless": True, "exact": True}],
    "tiff": [{"compression": kind} for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
    "gif": [{}],
    "bmp": [{}],
    "ppm": [{}],
}
TURNING = ("png", "jpeg", "webp", "tiff")
"""Formats that say how a picture is turned."""
DEEP = ("png", "tiff", "ppm")
"""Formats that keep 16 bits; Pillow makes 8 of them elsewhere."""


def picture(mode: str, size: tuple[int, int] = (7, 5)) -> Image.Image:
    """Return a picture that looks different from all sides, opaque where it can be transparent."""
    width, height = size
    rng = np.random.default_rng(0)
    if mode.startswith("I"):
        values = rng.integers(0, 65536, (height, width))
        return Image.fromarray(values.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32))
    colour = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "LAB":
        return Image.frombytes("LAB", size, colour.tobytes())
    return colour.convert("RGBA").convert("PA") if mode == "PA" else colour.convert(mode)


def pixels(path: Path, channels: int) -> np.ndarray:
    """Return what is read, (height, width, channels)."""
    return np.asarray(read_image(path, channels, path.name)[0].permute(1, 2, 0))


def independently(path: Path, channels: int) -> np.ndarray:
    """Return what Pillow itself makes of a file that is opaque and not turned, (height, width, channels)."""
    with path.open("rb") as file, Image.open(file) as image:
        if image.mode.startswith("I"):
            deep = np.asarray(image).astype(np.float32) / np.float32(65535.0)
            return np.repeat(deep[..., None], channels, axis=2)
        made = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return made.reshape(*made.shape[:2], channels).astype(np.float32) / np.float32(255.0)


def written(place: Path, forms: Iterable[str] = WAYS) -> Iterator[tuple[str, str, dict[str, Any], Path]]:
    """Yield format, mode, options, and the file: for whatever Pillow writes, as it is stored."""
    for form in forms:
        for mode in MODES:
            for i, options in enumerate(WAYS[form]):
                path = place / f"{mode.replace(';', '')}-{i}.{form}"
                try:
                    picture(mode).save(path, **options)
                except (OSError, ValueError, KeyError, RuntimeError):  # Pillow does not write this
                    path.unlink(missing_ok=True)
                    continue
                yield form, mode, options, path


def test_every_format_and_mode_is_turned_as_its_orientation_says(tmp_path: Path) -> None:
    seen: dict[str, set[str]] = {form: set() for form in TURNING}
    for form, mode, options, path in written(tmp_path, TURNING):
        if options.get("compression", "raw") != "raw" and mode not in ("1", "L", "RGB", "I;16"):
            continue  # one way to read them all
        refused = {"F": (1, 3), "I": (1, 3), "LAB": (1,)}.get(mode, ()) if form == "tiff" else ()
        for channels in refused:
            with pytest.raises(DataError, match="cannot be read"):
                read_image(path, channels, path.name)
        stored = {channels: independently(path, channels) for channels in (1, 3) if channels not in refused}
        for orientation, turn in TURNS.items():
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            picture(mode).save(path, exif=exif, **options)
            for channels, straight in stored.items():
                what = f"{form} {mode} {options} {orientation}"
                np.testing.assert_array_equal(pixels(path, channels), turn(straight), err_msg=what)
        seen[form].add(mode)
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"} <= seen["png"]
    assert {"L", "RGB", "CMYK"} <= seen["jpeg"]
    assert {"RGB", "RGBA"} <= seen["webp"]
    assert {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B"} <= seen["tiff"]


def test_what_is_read_is_what_was_stored(tmp_path: Path) -> None:
    """Without a loss, and against the numbers that were written; of every format that keeps them."""
    seen = set()
    for form, mode, options, path in written(tmp_path):
        if form == "jpeg" or options.get("compression") == "jpeg" or mode not in ("1", "L", "RGB", "I;16", "I;16B"):
            continue
        if (form == "gif" and mode == "RGB") or (mode.startswith("I") and form not in DEEP):
            continue  # Pillow made it 256 colours, or 8 bits
        image = picture(mode)
        largest = 65535.0 if mode.startswith("I") else 255.0
        numbers = np.asarray(image.convert("L") if mode == "1" else image).astype(np.float32) / np.float32(largest)
        made = pixels(path, 3 if mode == "RGB" else 1)
        np.testing.assert_array_equal(made, numbers.reshape(5, 7, -1), err_msg=f"{form} {mode}")
        seen.add((form, mode))
    assert {("tiff", "I;16"), ("tiff", "L"), ("png", "I;16"), ("ppm", "L"), ("bmp", "RGB"), ("gif", "L")} <= seen


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_large_scan_in_strips_is_turned(tmp_path: Path, mode: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = picture(mode, (301, 407))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "scan.tif", exif=exif)
    plain, made = (read_image(tmp_path / name, 1, name)[0, 0].numpy() for name in ("plain.png", "scan.tif"))
    np.testing.assert_array_equal(made, np.rot90(plain, -1))
