"""Arrays from anywhere: read as numpy reads them, and refused by their headers."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disue import npy
from disue.npy import decode_npy, encode_npy, read_npz


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(["|u1", "<f4", ">f8", "<i8", "|b1", "<c8", "<U3", "|S2", "<f2"]),
    st.booleans(),
)
@settings(max_examples=60)
def test_it_is_what_numpy_reads(shape: list[int], kind: str, fortran_order: bool) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    array = np.asfortranarray(array) if fortran_order else array
    made = decode_npy(saved(array))
    np.testing.assert_array_equal(made, np.load(io.BytesIO(saved(array))))
    assert (made.dtype, made.shape, made.flags.writeable) == (array.dtype, array.shape, True)
    assert encode_npy(array) == saved(np.ascontiguousarray(array).reshape(array.shape))


def test_a_header_that_was_read_once_is_not_taken_for_another() -> None:
    arrays = [np.arange(6, dtype=kind).reshape(shape) for kind in ("<f4", "<f8", "<i4") for shape in ((2, 3), (3, 2))]
    for array in [*arrays, *arrays]:
        for made in (decode_npy(saved(array)), decode_npy(encode_npy(array))):
            np.testing.assert_array_equal(made, array)
            assert made.dtype == array.dtype


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no header"),
        (b"no array at all", "no header"),
        (with_header("("), "no header"),  # numpy raises TokenError
        (with_header("(" * 5000), "no header"),
        (with_header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': ()}"), "no header"),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}"), "announces 1099511627776"),
        (
            with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}", b"abc"),
            "announces 2 bytes .* 3 follow",
        ),
        (with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,-3)}", b"abc"), "not numbers or texts"),
        (with_header("{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}"), "not numbers or texts"),
        (with_header("{'descr': '|V4', 'fortran_order': False, 'shape': (1,)}", b"abcd"), "not numbers or texts"),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."), "holds object"),
    ],
)
def test_what_is_no_array_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_npy(content)


def test_an_archive_may_be_compressed_but_not_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npy, "MOST_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(9000, dtype=np.uint8), y=np.arange(3))
    assert {name: len(array) for name, array in read_npz(tmp_path / "a.npz", {"x", "y", "z"}).items()} == {
        "x": 9000,
        "y": 3,
    }
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(1_000_000, dtype=np.uint8))
    with pytest.raises(ValueError, match="x.npy is announced with 1000128 bytes; at most"):
        read_npz(tmp_path / "bomb.npz", {"x"})
    assert read_npz(tmp_path / "bomb.npz", {"y"}) == {}
    np.savez(tmp_path / "large.npz", x=np.zeros(1_000_000, dtype=np.uint8))
    assert read_npz(tmp_path / "large.npz", {"x"})["x"].size == 1_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", saved(np.arange(9)))
    with pytest.raises(ValueError, match="in a way that numpy does not use"):
        read_npz(tmp_path / "a.npz", {"x"})


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.npz", "w") as archive:
        for name in ("../x.npy", "/tmp/x.npy", "x.npy"):
            archive.writestr(name, saved(np.arange(9)))
    assert list(read_npz(tmp_path / "in" / "a.npz", {"x", "../x"})) == ["../x", "x"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.npz"]
