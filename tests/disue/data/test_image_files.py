"""Images of all kinds become what the task wants, by the rules in the docstrings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disue.data.folders import images_below
from disue.data.image_files import from_array, read_image, read_images
from disue.errors import DataError

shapes = st.tuples(st.sampled_from([1, 3]), st.integers(4, 12), st.integers(4, 12))


@given(
    st.integers(0, 5),
    st.tuples(st.integers(4, 20), st.integers(4, 20)),
    st.sampled_from(["grey", "last-1", "last-3", "first-1", "first-3"]),
    st.sampled_from(["uint8", "float16", "float32", "float64"]),
    shapes,
    st.integers(0, 99),
)
@settings(max_examples=80)
def test_any_array_becomes_pixels_of_the_shape(
    count: int, size: tuple[int, int], layout: str, kind: str, shape: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    axes = {
        "grey": (count, *size),
        "last-1": (count, *size, 1),
        "last-3": (count, *size, 3),
        "first-1": (count, 1, *size),
        "first-3": (count, 3, *size),
    }[layout]
    x = rng.integers(0, 256, axes, dtype=np.uint8) if kind == "uint8" else rng.random(axes).astype(kind)
    made = from_array(x, shape)
    assert made.shape == (count, *shape)
    assert made.dtype == torch.float32
    assert not count or 0.0 <= float(made.min()) <= float(made.max()) <= 1.0


@given(st.integers(1, 300), st.integers(0, 99))
@settings(max_examples=20)
def test_bytes_and_the_same_floats_become_the_same(count: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    made = from_array(x, (3, 5, 6))
    assert torch.equal(made, torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)))
    assert torch.equal(made, from_array(x.astype(np.float32) / np.float32(255.0), (3, 5, 6)))
    assert torch.equal(made, from_array(x.transpose(0, 3, 1, 2), (3, 5, 6)))


@given(shapes, st.integers(0, 255))
@settings(max_examples=30)
def test_an_even_image_stays_even(shape: tuple[int, int, int], value: int) -> None:
    made = from_array(np.full((2, 9, 7, 3), value, dtype=np.uint8), shape)
    torch.testing.assert_close(made, torch.full((2, *shape), value / 255.0), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 5, 5), dtype=np.int64), "x is int64; expected uint8 from 0 to 255, or floats from 0 to 1"),
        (np.zeros((2, 5, 5), dtype=bool), "x is bool; expected uint8"),
        (np.full((2, 5, 5), 255.0), "x has floats from 255 to 255; expected numbers from 0 to 1"),
        (np.full((2, 5, 5), -0.1), "x has floats from -0.1 to -0.1"),
        (np.full((2, 5, 5), np.nan), "x has floats from nan to nan"),
        (np.full((2, 5, 5), np.inf), "x has floats from inf to inf"),
        (np.zeros((2, 5, 5, 4), dtype=np.uint8), r"x is \(2, 5, 5, 4\); expected .* with 1 or 3 channels"),
        (np.zeros((2, 3, 9, 3), dtype=np.uint8), "the second and the last axis could both be channels"),
        (np.zeros((2, 0, 5), dtype=np.uint8), r"x is \(2, 0, 5\); expected"),
        (np.zeros((5, 5, 3), dtype=np.uint8), r"x is \(5, 5, 3\); the last axis looks like channels"),
        (np.zeros((5, 5, 1), dtype=np.uint8), r"x is \(5, 5, 1\); the last axis looks like channels"),
        (np.zeros((2, 5, 5, 2), dtype=np.uint8), r"x is \(2, 5, 5, 2\); expected .* with 1 or 3 channels"),
        (np.zeros((2, 25), dtype=np.uint8), r"x is \(2, 25\); expected"),
        (np.zeros((), dtype=np.uint8), r"x is \(\); expected"),
    ],
)
def test_an_array_that_cannot_be_images_is_refused(x: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_array(x, (1, 5, 5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_is_read(tmp_path: Path, mode: str, channels: int) -> None:
    white = Image.fromarray(np.full((6, 8), 65535, dtype=np.uint16)) if mode == "I;16" else Image.new("L", (8, 6), 255)
    path = tmp_path / ("white.tiff" if mode == "CMYK" else "white.png")
    (white if mode == "I;16" else white.convert(mode)).save(path)
    assert torch.equal(read_image(path, channels, "w"), torch.ones(1, channels, 6, 8))


def test_grey_of_sixteen_bits_keeps_its_steps(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 2000, 65535]], dtype=np.uint16).repeat(4, axis=0)
    Image.fromarray(values).save(tmp_path / "scan.png")
    made = read_images([tmp_path / "scan.png"], (1, 4, 4), ["scan"])
    np.testing.assert_allclose(made[0, 0], values / 65535.0, atol=1e-6)


def test_a_photograph_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    made = read_image(tmp_path / "photo.png", 1, "photo")
    np.testing.assert_allclose(made[0, 0] * 255.0, np.rot90(np.asarray(image), -1), atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_broken_file_is_named_as_it_was_called_and_not_by_its_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret-place" / "a.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="^'cat/a.png' cannot be read") as caught:
        read_image(path, 1, "cat/a.png")
    assert "secret-place" not in str(caught.value)
    with pytest.raises(DataError, match="No such file") as caught:
        read_image(path.with_name("gone.png"), 1, "cat/gone.png")
    assert "secret-place" not in str(caught.value)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match="^'a' cannot be read"):
        read_image(tmp_path / "a.png", 1, "a")


def test_hidden_files_and_files_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".c.png", "notes.txt", ".cache/d.png", "sub/e.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path)] == ["a.jpg", "b.PNG", "sub/e.gif"]


def test_a_program_that_calls_itself_an_image_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **options: started.append(arguments))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(rm) run\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="^'a' cannot be read .not an image"):
        read_image(tmp_path / "a.png", 3, "a")
    assert not started


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 4 * 2 * 16 - 1}))
    x = np.zeros((2, 4, 4), dtype=np.uint8)
    assert len(from_array(x[:1], (1, 4, 4))) == 1
    with pytest.raises(DataError, match="^2 images of 1x4x4 pixels take 0.0 GB of memory; 0.0 GB are free"):
        from_array(x, (1, 4, 4))
