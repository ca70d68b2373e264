"""TIFFs of more or of other bits than usual, built byte by byte: each is read as it says, or refused by name."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from disue.data.image_files import read_image
from disue.errors import DataError

WIDTH, HEIGHT = 4, 2


def tiff(
    path: Path,
    data: bytes,
    bits: int,
    *,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    deflated: bool = False,
) -> Path:
    """Write a grey TIFF of one strip, (2, 4)."""
    data = zlib.compress(data) if deflated else data
    data += bytes(len(data) % 2)
    numbers = {
        256: WIDTH,
        257: HEIGHT,
        258: bits,
        259: 8 if deflated else 1,
        262: photometric,
        273: 8,  # where the strip begins
        277: 1,
        278: HEIGHT,
        279: len(data),
        339: sample_format,
    }
    tags = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, number, 0) for tag, number in numbers.items())
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(numbers)) + tags + bytes(4))
    return path


def packed_12(values: np.ndarray) -> bytes:
    """Return two numbers of 12 bits in three bytes, the high bits first."""
    return b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in values.reshape(-1, 2))


@pytest.mark.parametrize(("channels", "deflated"), [(1, False), (3, False), (1, True)])
@pytest.mark.parametrize(("bits", "photometric"), [(4, 0), (4, 1), (8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_grey_is_scaled_by_its_bits_and_inverted_where_0_is_white(
    tmp_path: Path, bits: int, photometric: int, channels: int, deflated: bool
) -> None:
    most = 2**bits - 1
    values = np.array([[0, 1, most // 2, most - 1], [most, 2, 3, 0]])
    data = {
        4: lambda: bytes(int(a) << 4 | int(b) for a, b in values.reshape(-1, 2)),
        8: lambda: values.astype("u1").tobytes(),
        12: lambda: packed_12(values),
        16: lambda: values.astype("<u2").tobytes(),
    }[bits]()
    path = tiff(tmp_path / "a.tif", data, bits, photometric=photometric, deflated=deflated)
    expected = values / most if photometric else 1.0 - values / most
    for plane in read_image(path, channels, "a")[0]:
        np.testing.assert_allclose(plane, expected, atol=1e-6)


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300, 65535], [65534, 2, 3, 4]])
    path = tiff(tmp_path / "a.tif", values.astype(">u2").tobytes(), 16, order=">")
    np.testing.assert_allclose(read_image(path, 1, "a")[0, 0], values / 65535.0, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_integers_are_refused(tmp_path: Path, bits: int, order: str) -> None:
    values = np.array([[-1, 0, 1, 2], [3, 4, 5, -6]]).astype(f"{order}i{bits // 8}")
    path = tiff(tmp_path / "a.tif", values.tobytes(), bits, sample_format=2, order=order)
    words = (
        f"^'a' cannot be read .pixels are signed integers of {bits} bits; save them as unsigned ones of 8 or 16 bits.$"
    )
    with pytest.raises(DataError, match=words):
        read_image(path, 1, "a")


@pytest.mark.parametrize("most", [255, 2**32 - 1])
def test_integers_of_32_bits_are_refused(tmp_path: Path, most: int) -> None:
    path = tiff(tmp_path / "a.tif", np.full((2, 4), most).astype("<u4").tobytes(), 32)
    with pytest.raises(
        DataError, match="^'a' cannot be read .pixels are integers of 32 bits; save them with 8 or 16 bits.$"
    ):
        read_image(path, 1, "a")


@pytest.mark.parametrize(
    ("bits", "settings"),
    [(16, {"photometric": 0, "order": ">"}), (12, {"photometric": 0}), (12, {"order": ">"}), (24, {}), (64, {})],
)
def test_a_kind_of_tiff_that_pillow_does_not_know_is_not_said_to_be_no_image(
    tmp_path: Path, bits: int, settings: dict[str, object]
) -> None:
    path = tiff(tmp_path / "a.tif", bytes(bits), bits, **settings)  # type: ignore[arg-type]
    with pytest.raises(
        DataError,
        match=r"^'a' cannot be read \(a TIFF that is damaged, or of a kind that is not read; save it as PNG\)$",
    ):
        read_image(path, 1, "a")
