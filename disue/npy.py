"""Arrays as numpy saves them, from anywhere: nothing is executed, and no more is allocated than there is to read."""

import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Set
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

MOST_BYTES = 2**30
"""An array in an archive is never refused for its size up to so many bytes ..."""
MOST_TIMES = 20
"""... nor if it is up to so many times as large as the archive; images that people compress are less."""
HEADERS = {
    (1, 0): (struct.Struct("<H"), npy_format.read_array_header_1_0),
    (2, 0): (struct.Struct("<I"), npy_format.read_array_header_2_0),
}
"""By the version of the format: what the length of a header is written as, and what reads both."""
LONGEST_HEADER = 10_000
"""Bytes; numpy takes no more either."""
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
KINDS = "biufcUS"
"""Of the types that are read: numbers and texts."""


def read_npy(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Read an array of numbers or texts.

    Parameters
    ----------
    file : binary file
        Positioned at its beginning.
    size : int
        Bytes that it has.

    Raises
    ------
    ValueError
        If it is no such array, or its header announces more, or less, than follows.
    """
    try:
        version = npy_format.read_magic(file)
        written = file.read(HEADERS[version][0].size)
        (length,) = HEADERS[version][0].unpack(written)
        shape, fortran_order, dtype = _parsed(version, written + file.read(min(length, LONGEST_HEADER)))
    except Exception:  # it is parsed as Python is: whatever the parser says, there is no header
        raise ValueError("it has no header of an array") from None
    if dtype.kind not in KINDS or not dtype.itemsize or dtype.shape or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype} {shape}, not numbers or texts")
    count, left = math.prod(shape), size - file.tell()
    if count * dtype.itemsize != left:
        raise ValueError(f"its header announces {count * dtype.itemsize} bytes of data, and {left} follow")
    if not left:
        return np.empty(shape, dtype)
    content = bytearray(left)
    if _read_into(file, content) < left:
        raise ValueError("its data are cut short")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)  # the parser takes longer than all else
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with warnings.catch_warnings(action="ignore"):  # numpy says so where a header is as Python 2 wrote it
        parsed: tuple[tuple[int, ...], bool, np.dtype[Any]] = HEADERS[version][1](BytesIO(header))
    return parsed


def _read_into(file: IO[bytes], content: bytearray) -> int:
    done, view = 0, memoryview(content)
    while done < len(content) and (part := file.read(min(2**20, len(content) - done))):
        view[done : done + len(part)] = part
        done += len(part)
    return done


def encode_npy(array: np.ndarray[Any, Any]) -> bytes:
    """Return what ``numpy.save`` writes of an array of numbers, in C order."""
    return b"".join((_header(array.dtype, array.shape), np.ascontiguousarray(array).data))


@lru_cache(maxsize=256)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    file = BytesIO()
    told = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, told)
    return file.getvalue()


def decode_npy(content: bytes) -> np.ndarray[Any, Any]:
    """Return the array of which ``numpy.save`` made these bytes; see `read_npy`."""
    return read_npy(BytesIO(content), len(content))


def read_npz(path: Path, names: Set[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Return those arrays of an ``.npz`` file that are there and have one of the names.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, is damaged, or an array is announced with more than `MOST_BYTES` bytes and more than
        `MOST_TIMES` as many as the whole file has.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            for name in sorted(names):
                if (member := f"{name}.npy") in there:
                    arrays[name] = _member(archive, member, max(MOST_BYTES, MOST_TIMES * path.stat().st_size))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise ValueError(str(error)) from None
    return arrays


def array_names(path: Path) -> set[str]:
    """Return the names of the arrays in an ``.npz`` file that `read_npz` reads."""
    with zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _member(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray[Any, Any]:
    about = archive.getinfo(name)
    if about.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that numpy does not use")
    if about.file_size > most:
        raise ValueError(f"{name} is announced with {about.file_size} bytes; at most {most} are read from such a file")
    with archive.open(about) as file:
        return read_npy(file, about.file_size)
