"""Files of a run directory: read with errors that name them, written so that they are whole or not there."""

import csv
import errno
import json
import os
import stat
import threading
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from disue.config import ClientConfig, Settings, unfit_for_files
from disue.errors import DISK_FULL, ConfigError, DataError, DiskError, quoted_value

T = TypeVar("T")
RUN_FORMAT = 3
"""The number of the run directory, which ``config.toml`` begins with.

Raise it by one when a file of a run directory is new, gone, renamed, or means something else, so that older code would
misread it; older numbers must still be read. Then store a run of it: see ``tests/stored_runs``.
"""
UNNUMBERED = 1
"""The format of directories from before they had a number: nothing else changed then."""
LARGEST = 1e300
"""Of numbers in files; they are added, and multiplied by small ones."""
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
PARTS = ".*.part"
"""What files are called that are still being written."""
ADVICE = "run it again, or restore the file"
OTHER_MODEL = "restore the file, or the code of the model that made it"
OTHER_VERSION = "the run is of another version of DisUE, or the file was changed"
NOT_PARSED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, csv.Error)
"""What parsers raise where a text is not what they expect."""


def user_path(text: str | Path, key: str = "") -> Path:
    """Return a path that a person named, with ``~`` looked up.

    Parameters
    ----------
    text : str or Path
    key : str
        The option that it comes from; named in the error.

    Raises
    ------
    DataError
        If it can be no path here: there is no such user, it is too long, or what is above it may not be entered.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"{key + ': ' if key else ''}'{text}' cannot be used ({why})") from None
    return path


def read_text(path: Path, parse: Callable[[str], T], missing: T | None = None) -> T:
    """Return what ``parse`` makes of a file's text; of one that does not exist ``missing``, if that is given.

    Raises
    ------
    DataError
        If it cannot be read, is no file of its own, or ``parse`` raises one of `NOT_PARSED`, or a `ConfigError`.
    """
    if missing is not None and not os.path.lexists(path):
        return missing
    try:
        if path.exists() and not path.is_file():  # a pipe or a device might never end
            raise DataError(f"'{path}' cannot be read (it is no file)")
        return parse(path.read_bytes().decode())
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror})") from None
    except ConfigError as error:
        raise DataError(f"'{path}': {error}; {OTHER_VERSION}") from None
    except NOT_PARSED as error:
        raise DataError(f"'{path}' is damaged ({_what(error)}); {ADVICE}") from None


def _what(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"no column {error}"
    return (str(error) or type(error).__name__).splitlines()[0]


def inside(directory: Path, name: str) -> Path:
    """Return a folder of a run directory, there or not, in which something is to be written or removed.

    Raises
    ------
    DataError
        If it is a link that leads out: who made the run directory does not say what happens elsewhere.
    """
    path = directory / name
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(directory)):
        raise DataError(f"'{path}' leads out of the run directory, to '{real}'; put a folder in its place")
    if os.path.lexists(path) and not path.is_dir():
        raise DataError(f"'{path}' is no folder; remove it")
    return path


def folder_inside(directory: Path, name: str) -> Path:
    """Return a folder of a run directory, which is made if it is missing; see `inside`."""
    path = inside(directory, name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def open_inside(directory: Path, path: Path, flags: int) -> int:
    """Open a file of a run directory as `open_itself` does, in a folder that must be there; see `inside`."""
    inside(directory, str(path.parent))
    return open_itself(directory / path, flags)


def open_itself(path: Path, flags: int) -> int:
    """Open a file, never what a link leads to, and return the descriptor; flags are those of `os.open`.

    Raises
    ------
    DataError
        If there is a link, a folder, a pipe or a device in its place.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # ENXIO: a pipe that nobody reads
            raise
        raise DataError(_no_file(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(_no_file(path))
    return descriptor


def _no_file(path: Path) -> str:
    return f"'{path}' is {'a link' if path.is_symlink() else 'no file'}; remove it"


class _Loose(BaseModel):
    """A table whose known keys have the right types; there may be others, of another version."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, alias_generator=lambda name: name.replace("_", "-")
    )


class _Task(_Loose):
    classes: list[str] = []
    input_shape: str = ""
    mean: list[float] = []
    std: list[float] = []


class _Federation(_Loose):
    clients: list[str] = []
    partitions: int = 0


class _Settings(_Loose):
    run: dict[str, bool | int | float | str]
    task: _Task = _Task()
    federation: _Federation = _Federation()
    versions: dict[str, str] = {}


def run_settings(text: str, known: type[Settings] = ClientConfig) -> dict[str, Any]:
    """Parse ``config.toml``.

    Parameters
    ----------
    text : str
    known : type of Settings
        The keys whose values must have the right type. There may be other keys, of any type.

    Raises
    ------
    ConfigError
        If the run directory is of a newer format.
    ValueError
        If a value is of another type than runs write.
    """
    settings = tomllib.loads(text)
    _require_known(settings.get("format", UNNUMBERED))
    if not isinstance(settings.get("run"), dict):
        raise ValueError("there is no [run] in it")
    usual = known().to_flower()
    for key, value in settings["run"].items():
        kinds = (float, int) if type(usual.get(key)) is float else (type(usual.get(key)),)
        if key in usual and type(value) not in kinds:
            raise ValueError(f"run.{key} is {value!r}, not {kinds[0].__name__}")
        if wrong := unfit_for_files(value):
            raise ValueError(f"run.{key} is {value!r}; {wrong}")
    checked(_Settings, settings)
    return settings


def _require_known(number: object) -> None:
    if type(number) is not int or number < 1:
        raise ValueError(f"format is {quoted_value(number)}, not a whole number from 1")
    if number > RUN_FORMAT:
        raise ConfigError(
            f"format: got {number}; this version of DisUE reads run directories up to format {RUN_FORMAT}, use a newer "
            "one"
        )


def checked(kind: type[BaseModel], value: Any) -> Any:
    """Return a value, if it is of such a kind; raise ValueError, in one line, if it is not."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}") from None
    return value


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def json_numbers(text: str, texts: Collection[str] = ()) -> dict[str, Any]:
    """Parse a JSON object of finite numbers, or null; some keys have texts. Raise ValueError if it is another."""
    value = json_object(text)
    for key, own in value.items():
        if key in texts:
            right = isinstance(own, str)
        else:
            right = own is None or (isinstance(own, int | float) and -LARGEST < own < LARGEST)
        if not right:
            raise ValueError(f"{key} is {own!r}, not {'a text' if key in texts else 'a number'}")
    return value


def run_summary(text: str) -> dict[str, Any]:
    """Parse ``summary.json``."""
    return json_numbers(text, ("status", "method", "scenario", "dataset", "error"))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file, and what it says of them (see `write_tensors`).

    Raises
    ------
    DataError
        If it cannot be read, is damaged, or holds a value that is not finite.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"'{path}' cannot be read (it is no file)")
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            about = json_object((file.metadata() or {})["disue"])
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"'{name}' has values that are not finite")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or 'no such file'})") from None
    except (SafetensorError, *NOT_PARSED, RuntimeError) as error:  # torch has no arithmetic for some types
        what = "it says nothing of DisUE" if isinstance(error, KeyError) else _what(error)
        raise DataError(f"'{path}' is damaged ({what}); {ADVICE}") from None
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


def write_passing(path: Path, content: str) -> None:
    """Write a file that is whole or not there, and need not outlive a power cut."""
    with _beside(path) as part:
        part.write_text(content, encoding="utf-8")
        part.replace(path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``path`` if all went well and is gone if not.

    What is in it is on the disk before it has its name, so that a power cut leaves the old file or the new one. A link
    in the place of ``path`` is replaced, and what it leads to stays as it is.

    Raises
    ------
    DataError
        If there is a folder in its place.
    DiskError
        If the disk is full; what was there before is still there.
    """
    if path.is_dir() and not path.is_symlink():
        raise DataError(_no_file(path))
    with disk_errors(path), _beside(path) as part:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a new file in the same folder, of this process alone, which is gone at the end."""
    part = part_of(path)
    part.unlink(missing_ok=True)  # what a process of the same number left, or a link to somewhere else
    try:
        os.close(open_itself(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        yield part
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
    """Return where this process and thread write a file before it is moved to its place; `PARTS` are all of them."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.part")


def append(path: Path, text: str) -> None:
    """Add to a file, and see that it is on the disk; a file with a second name is replaced, and the other one kept.

    Raises
    ------
    DataError
        If there is a link, a folder, a pipe or a device in its place.
    DiskError
        If the disk is full.
    """
    with disk_errors(path), os.fdopen(open_itself(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "rb+") as file:
        if os.fstat(file.fileno()).st_nlink > 1:
            write_whole(path, file.read() + text.encode())
            return
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
