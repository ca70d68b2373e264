"""Pictures of which a part is transparent, of every kind that has such parts."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disue.data.image_files import read_image, read_images

INK = np.zeros((6, 8), dtype=bool)
INK[1:5, 2:4] = True
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def read(path: Path, channels: int = 1) -> np.ndarray:
    """Return the one grey picture, (height, width), that all channels must be."""
    pixels = read_image(path, channels, path.name)[0].numpy()
    assert all((channel == pixels[0]).all() for channel in pixels)
    return np.asarray(pixels[0])


def png(path: Path, bits: int, colour: int, samples: np.ndarray, chunks: dict[bytes, bytes]) -> Path:
    """Write samples, (height, width, channels), as the PNG standard says: Pillow does not write all of its kinds."""
    height, width, _ = samples.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        flat = samples.reshape(height, -1, 1).astype(np.uint8)
        rows = [np.packbits(np.unpackbits(row, axis=1)[:, 8 - bits :].ravel()).tobytes() for row in flat]
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = {b"IHDR": head, **chunks, b"IDAT": body, b"IEND": b""}
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


@CHANNELS
@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("png", "LA", {}),
        ("png", "RGBA", {}),
        ("webp", "RGBA", {"lossless": True, "exact": True}),
        ("tiff", "LA", {}),
        ("tiff", "PA", {}),
        ("tiff", "RGBA", {"compression": "tiff_lzw"}),
        ("gif", "RGBA", {}),
        ("png", "P", {}),
    ],
)
def test_ink_that_only_the_transparency_has_is_seen(
    tmp_path: Path, form: str, mode: str, options: dict[str, Any], ink: int, channels: int
) -> None:
    picture = Image.new("RGB", (8, 6), (ink,) * 3)
    picture.putalpha(Image.fromarray(INK.astype(np.uint8) * 255))
    path = tmp_path / f"a.{form}"
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(path, **options)
    black_on_white = np.where(INK, 0.0, 1.0)
    np.testing.assert_array_equal(read(path, channels), black_on_white if ink == 0 else 1.0 - black_on_white)


@CHANNELS
@pytest.mark.parametrize("ink", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_that_is_transparent_is_the_ground(tmp_path: Path, bits: int, ink: int, channels: int) -> None:
    """In a PNG one grey may be transparent, here one next to the ink's, told in the picture's own bits."""
    most = 2**bits - 1
    dark, other = (0, 1) if ink == 0 else (most, most - 1)
    samples = np.where(INK, dark, other)[..., None]
    path = png(tmp_path / "a.png", bits, 0, samples, {b"tRNS": struct.pack(">H", other)})
    np.testing.assert_allclose(read(path, channels), np.where(INK, float(ink), 1.0 - ink), atol=1e-6)


@CHANNELS
@pytest.mark.parametrize("bits", [8, 16])
def test_a_colour_that_is_transparent_is_the_ground(tmp_path: Path, bits: int, channels: int) -> None:
    scale = 1 if bits == 8 else 257
    samples = np.where(INK[..., None], [10, 10, 10], [10, 12, 10]) * scale
    clear = struct.pack(">HHH", *(value * scale for value in (10, 12, 10)))
    path = png(tmp_path / "a.png", bits, 2, samples, {b"tRNS": clear})
    np.testing.assert_allclose(read(path, channels), np.where(INK, 10 / 255, 1.0), atol=1e-6)


@CHANNELS
@pytest.mark.parametrize(("colour", "bits"), [(4, 8), (4, 16), (6, 8), (6, 16)])
def test_a_channel_of_opacity_is_laid_on_the_ground(tmp_path: Path, colour: int, bits: int, channels: int) -> None:
    most = 2**bits - 1
    samples = np.zeros((6, 8, 2 if colour == 4 else 4), dtype=np.int64)
    samples[..., -1] = np.where(INK, most, 0)
    path = png(tmp_path / "a.png", bits, colour, samples, {})
    np.testing.assert_array_equal(read(path, channels), np.where(INK, 0.0, 1.0))


@CHANNELS
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_colours_of_a_palette_may_be_transparent(tmp_path: Path, bits: int, channels: int) -> None:
    chunks = {b"PLTE": bytes(6), b"tRNS": b"\x00\xff"}  # two times black, the first cannot be seen
    path = png(tmp_path / "a.png", bits, 3, INK.astype(np.int64)[..., None], chunks)
    np.testing.assert_array_equal(read(path, channels), np.where(INK, 0.0, 1.0))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    grey = np.full((6, 8), 100, dtype=np.uint8)
    Image.fromarray(np.stack([grey, alpha], axis=2)).save(tmp_path / "a.png")
    expected = (100.0 * alpha + 255.0 * (255.0 - alpha)) / 255.0
    np.testing.assert_allclose(read(tmp_path / "a.png") * 255.0, expected, atol=1.01)


def test_opaque_pictures_and_wholly_transparent_ones_are_read_as_if_nothing_were_said(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    for alpha in (0, 255):
        Image.fromarray(np.stack([grey, np.full_like(grey, alpha)], axis=2)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read(tmp_path / "a.png"), grey.astype(np.float32) / np.float32(255.0))


def test_one_dark_speck_does_not_hide_white_ink(tmp_path: Path) -> None:
    grey = np.full((60, 80), 255, dtype=np.uint8)
    grey[30, 30] = 0
    alpha = np.zeros_like(grey)
    alpha[20:40, 20:40] = 255
    Image.fromarray(np.stack([grey, alpha], axis=2)).save(tmp_path / "a.png")
    made = read(tmp_path / "a.png")
    assert made[20:40, 20:40].sum() == 399
    assert made.sum() == 399


def test_pictures_that_show_nothing_and_further_pictures_of_a_file_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)) for _ in range(3)]
    for name in ("scan.tif", "film.gif", "film.webp", "film.apng"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    Image.new("RGBA", (8, 6), (9, 9, 9, 0)).save(tmp_path / "even.bmp")  # which forgets what is transparent
    paths = sorted(tmp_path.iterdir())
    made = read_images(paths, (1, 6, 8), [path.name for path in paths])
    np.testing.assert_allclose(made[-1, 0] * 255.0, np.asarray(pages[0]), atol=1e-4)
    assert [record.getMessage() for record in caplog.records] == [
        "files of which only the first picture is read: 4 ('film.apng', 'film.gif', 'film.webp' and 1 more)",
        "pictures in which all pixels are alike: 1 ('even.bmp')",
    ]
