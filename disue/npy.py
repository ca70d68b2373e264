"""Arrays as numpy saves them, from anywhere: nothing is executed, and no more is allocated than there is to read."""

import math
import warnings
import zipfile
import zlib
from collections.abc import Set
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

MOST_BYTES = 2**30
"""An array in an archive is never refused for its size up to so many bytes ..."""
MOST_TIMES = 20
"""... nor if it is up to so many times as large as the archive; images that people compress are less."""
HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
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
        with warnings.catch_warnings(action="ignore"):  # numpy says so where a header is as Python 2 wrote it
            shape, fortran_order, dtype = HEADERS[npy_format.read_magic(file)](file)
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


def _read_into(file: IO[bytes], content: bytearray) -> int:
    done, view = 0, memoryview(content)
    while done < len(content) and (part := file.read(min(2**20, len(content) - done))):
        view[done : done + len(part)] = part
        done += len(part)
    return done


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


def _member(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray[Any, Any]:
    about = archive.getinfo(name)
    if about.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that numpy does not use")
    if about.file_size > most:
        raise ValueError(f"{name} is announced with {about.file_size} bytes; at most {most} are read from such a file")
    with archive.open(about) as file:
        return read_npy(file, about.file_size)
