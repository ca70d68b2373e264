"""Files of a run directory: read with errors that name them, written so that they are whole or not there."""

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from disue.errors import DISK_FULL, DataError, DiskError

T = TypeVar("T")
ADVICE = "run it again, or restore the file"


def read_text(path: Path, parse: Callable[[str], T], missing: T | None = None) -> T:
    """Return what ``parse`` makes of a file's text; of one that does not exist ``missing``, if that is given.

    Raises
    ------
    DataError
        If it cannot be read, or ``parse`` raises ValueError, KeyError or TypeError.
    """
    if missing is not None and not path.exists():
        return missing
    try:
        return parse(path.read_bytes().decode())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DataError(f"'{path}' is damaged ({what}); {ADVICE}") from None


def run_settings(text: str) -> dict[str, Any]:
    """Parse ``config.toml``."""
    settings = tomllib.loads(text)
    if not isinstance(settings.get("run"), dict):
        raise ValueError("there is no [run] in it")
    return settings


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file, and what it says of them (see `write_tensors`).

    Raises
    ------
    DataError
        If it cannot be read, is damaged, or holds a value that is not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            about = json_object((file.metadata() or {})["disue"])
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or 'no such file'})") from None
    except (SafetensorError, ValueError, KeyError) as error:
        what = "it says nothing of DisUE" if isinstance(error, KeyError) else error
        raise DataError(f"'{path}' is damaged ({what}); {ADVICE}") from None
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"'{path}' is damaged ('{name}' has values that are not finite); {ADVICE}")
    return tensors, about


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors, and a JSON object that says what they are, as a safetensors file."""
    # One key only: safetensors writes several in an order that changes from file to file.
    write_whole(
        path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"disue": json.dumps(about)})
    )


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file that is whole or not there."""
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``path`` if all went well and is gone if not.

    What is in it is on the disk before it has its name, so that a power cut leaves the old file or the new one.

    Raises
    ------
    DiskError
        If the disk is full; what was there before is still there.
    """
    part = part_of(path)
    try:
        with disk_errors(path):
            yield part
            _sync(part)
            part.replace(path)
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise `DiskError`, which names what was to be written, where the system says that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskError(f"'{path}' cannot be written ({error.strerror}); make room there") from error


def part_of(path: Path) -> Path:
    """Return where a file is written before it is moved to its place."""
    return path.with_name(f".{path.name}.part")


def append(path: Path, text: str) -> None:
    """Add to a file, and see that it is on the disk; raise `DiskError` if that is full."""
    with disk_errors(path), path.open("a", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
