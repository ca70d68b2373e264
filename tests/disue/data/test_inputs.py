"""Images without labels, from files and arrays."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from disue.data.image_files import from_array, read_images
from disue.data.inputs import read_inputs, to_pixels
from disue.errors import DataError

SHAPE = (1, 8, 8)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    for name in ("folder/b.png", "folder/deeper/a.png", "one.jpg"):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(tmp_path / name)
    np.savez(tmp_path / "some.npz", x=rng.random((2, 8, 8)), other=np.array([{}], dtype=object))
    return tmp_path


def test_files_folders_and_arrays_come_in_the_order_given(places: Path) -> None:
    inputs = read_inputs([places / "one.jpg", places / "some.npz", places / "folder"], SHAPE)
    files = [places / "one.jpg", places / "folder/b.png", places / "folder/deeper/a.png"]
    assert inputs.names == [
        str(files[0]),
        f"{places / 'some.npz'}[0]",
        f"{places / 'some.npz'}[1]",
        *map(str, files[1:]),
    ]
    pictures = read_images(files, SHAPE, list(map(str, files)))
    arrays = from_array(np.load(places / "some.npz")["x"], SHAPE)
    assert torch.equal(inputs.pixels, torch.cat([pictures[:1], arrays, pictures[1:]]))


def test_arrays_tensors_and_paths_are_the_same_images(places: Path) -> None:
    x = np.load(places / "some.npz")["x"]
    expected = from_array(x, SHAPE)
    assert torch.equal(to_pixels(x, SHAPE), expected)
    assert torch.equal(to_pixels(torch.from_numpy(x), SHAPE), expected)
    assert torch.equal(to_pixels(x[1], SHAPE), expected[1:])
    assert torch.equal(to_pixels(str(places / "some.npz"), SHAPE), expected)
    both = [places / "one.jpg", str(places / "folder")]
    assert torch.equal(to_pixels(both, SHAPE), read_inputs([Path(path) for path in both], SHAPE).pixels)


def test_what_cannot_be_read_is_named(places: Path) -> None:
    (places / "empty").mkdir()
    (places / "text.png").write_text("no image")
    np.savez(places / "y.npz", y=np.arange(3))
    np.savez(places / "axes.npz", x=np.zeros((2, 3, 4, 5, 6)))
    np.savez(places / "none.npz", x=np.zeros((0, 8, 8)))
    np.savez(places / "objects.npz", x=np.array([{}], dtype=object))
    for name, what in [
        ("nothing", "does not exist; name images, folders of images or .npz files"),
        ("empty", "has no images"),
        ("text.png", "cannot be read (not an image)"),
        ("y.npz", "has no array x"),
        ("axes.npz", "x is (2, 3, 4, 5, 6); expected (n, height, width)"),
        ("none.npz", "has no images"),
        ("objects.npz", "cannot be read (not an .npz file of plain arrays"),
    ]:
        with pytest.raises(DataError) as caught:
            read_inputs([places / name], SHAPE)
        assert str(caught.value).startswith(f"'{places / name}'")
        assert what in str(caught.value)


def npz(path: Path, header: bytes) -> Path:
    """Write an archive with an array ``x`` of which only the header is there."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return path


def test_damaged_archives_are_named_whatever_numpy_raises(tmp_path: Path) -> None:
    """A size that no memory holds, a header that ends too early, and a kind of compression that nobody knows."""
    large = npz(tmp_path / "large.npz", b"{'descr': '<f8', 'fortran_order': False, 'shape': (980099999990199,)}\n")
    broken = npz(tmp_path / "broken.npz", b"{'descr': '<f8', 'fortran_order': False, 'shape': ((((((\n")
    strange = tmp_path / "strange.npz"
    content = npz(strange, b"{}\n").read_bytes()
    local, central = content.index(b"PK\x03\x04") + 8, content.index(b"PK\x01\x02") + 10
    for place in (local, central):
        content = content[:place] + (99).to_bytes(2, "little") + content[place + 2 :]
    strange.write_bytes(content)
    for path in (large, broken, strange):
        with pytest.raises(DataError, match="cannot be read") as caught:
            read_inputs([path], SHAPE)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("x", [None, 3, [], {}, [1, 2], np.float32(0.5), np.array(0.5)], ids=repr)
def test_what_is_no_image_at_all_is_said(x: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        to_pixels(x, SHAPE)


def test_half_precision_is_taken(places: Path) -> None:
    x = torch.rand(2, 8, 8).bfloat16()
    assert torch.equal(to_pixels(x, SHAPE), to_pixels(x.float(), SHAPE))
