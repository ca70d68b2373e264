"""All that a run needs to go on after a round, in one file: tensors, and how they hang together as JSON.

See `strategies.rounds.state` for what a part remembers. Values are tensors, plain numbers and texts, lists, tuples,
sets and dicts of them, the records below, and parts in their turn. What is one object in two places is one object again
when it is read: some of them are known by their identity.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from disue.errors import DataError
from disue.files import NOT_PARSED, inside, write_whole
from disue.source import source_hash
from disue.tasks import DataSummary, ImageClassification
from disue.wire import EvaluateReply
from server_app.callbacks.base import Callback, RunContext
from server_app.rows import Row
from strategies.rounds.state import OTHER_VERSION, state_of
from strategies.stored import STORED, stored

DIRECTORY = "checkpoint"
METADATA = "disue"
FORMAT = 2
KEPT = 2
NOT_UNPACKED = (SafetensorError, RuntimeError, *NOT_PARSED)
for _kind in (DataSummary, EvaluateReply, ImageClassification):  # of the ground floor, which knows of no checkpoint
    stored(_kind)
COLLECTIONS: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes
    ----------
    round : int
        The last one that is in it.
    source : str
        The hash of the source code that wrote it.
    parts : dict
        Name of a part -> its state, for `restore`.
    damaged : list of str
        Newer checkpoints, which cannot be used.
    """

    round: int
    source: str
    parts: dict[str, Any]
    damaged: list[str]


class Checkpoints:
    """The checkpoints of a run, of which the last two are kept.

    The name of a file holds the SHA-256 of what is in it.

    Parameters
    ----------
    directory : Path
        The run directory.

    Attributes
    ----------
    has_saved : bool
        Whether one was written since these were made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / DIRECTORY
        self.has_saved = False
        self._good: list[Path] = []
        self._source = source_hash()  # now: a round counts once it is saved, and its row is written already

    def save(self, server_round: int, parts: Mapping[str, object]) -> None:
        """Write what is to be known of some parts after a round, and remove what is older than the last two."""
        states = {name: state_of(part) for name, part in parts.items()}
        content = packed({"round": server_round, "source": self._source, "parts": states})
        inside(self.directory.parent, DIRECTORY)  # it may have become a link since the last round
        path = self.directory / f"round-{server_round:06}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(path, content)
        self.has_saved = True
        self._good = [*self._good, path][-KEPT:]
        for old in set(self.directory.glob("round-*")) - set(self._good):
            if old.is_symlink() or not old.is_dir():
                old.unlink(missing_ok=True)

    def load(self) -> Saved | None:
        """Return the newest checkpoint that is not damaged; None if there is none at all.

        Raises
        ------
        DataError
            If all are damaged, or the newest that is not is of another version.
        """
        damaged: list[str] = []
        for path in sorted(self.directory.glob("round-*.safetensors"), reverse=True):
            content = path.read_bytes() if path.is_file() else b""
            if not path.stem.endswith(hashlib.sha256(content).hexdigest()):
                damaged.append(path.name)
                continue
            self._good = [path]
            try:
                kept = unpacked(content)
                return Saved(_round(kept["round"]), str(kept["source"]), dict(kept["parts"]), damaged)
            except NOT_UNPACKED as error:
                why = f"{type(error).__name__}: {error}"
                raise DataError(f"'{path}' {OTHER_VERSION} ({why}); go on with that version, or run it anew") from None
        if damaged:
            raise DataError(f"'{self.directory}': all checkpoints are damaged ({', '.join(damaged)}); run it anew")
        return None


class Checkpointing(Callback):
    """Saves a checkpoint after every round.

    Parameters
    ----------
    checkpoints : Checkpoints
    parts : mapping of str to object
        What remembers something from round to round, beside the parts of the run.
    """

    def __init__(self, checkpoints: Checkpoints, parts: Mapping[str, object]) -> None:
        self.checkpoints = checkpoints
        self.parts = parts

    def after_round(self, run: RunContext, row: Row) -> None:
        """Save one; from then on the round counts."""
        self.checkpoints.save(row["round"], {**run.parts, **self.parts})


def _round(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"round {value!r}")
    return value


def packed(value: Any) -> bytes:
    """Return a value as a safetensors file whose metadata say, as JSON, how its tensors hang together.

    Whatever is not None, a number or a text is a numbered object: ``[number]`` stands for it wherever it occurs, after
    all that is in it.

    Raises
    ------
    TypeError
        If there is something in it that is not to be kept.
    """
    objects: list[tuple[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    numbers: dict[int, tuple[int, object]] = {}  # with the object, so that its id stays its own

    def pack(value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) not in numbers:
            entry = enter(value)
            numbers[id(value)] = len(objects), value
            objects.append(entry)
        return [numbers[id(value)][0]]

    def enter(value: Any) -> tuple[str, Any]:
        kind = type(value)
        if kind is Tensor:
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return "tensor", name
        if kind is dict:
            return "dict", [[pack(key), pack(own)] for key, own in value.items()]
        if kind in COLLECTIONS.values():
            return kind.__name__, [pack(own) for own in (sorted(value) if kind in (set, frozenset) else value)]
        if kind in STORED.values():
            return kind.__name__, {name: pack(getattr(value, name)) for name in _fields(kind)}
        raise TypeError(f"a checkpoint cannot hold a {kind.__name__}")

    return save(tensors, {METADATA: json.dumps({"format": FORMAT, "value": pack(value), "objects": objects})})


def unpacked(content: bytes) -> Any:
    """Return the value of which `packed` made a file.

    Raises
    ------
    One of `NOT_UNPACKED`
        If it was made by another version.
    """
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    structure = json.loads(header["__metadata__"][METADATA])
    if structure["format"] != FORMAT:
        raise ValueError(f"format: got {structure['format']}; this version reads {FORMAT}")
    objects: list[Any] = []

    def unpack(value: Any) -> Any:
        return objects[value[0]] if isinstance(value, list) else value

    def build(kind: str, content: Any) -> Any:
        if kind == "tensor":
            return tensors[content].clone()  # aligned as torch aligns
        if kind == "dict":
            return {unpack(key): unpack(own) for key, own in content}
        if kind in COLLECTIONS:
            return COLLECTIONS[kind](unpack(own) for own in content)
        return STORED[kind](**{name: unpack(own) for name, own in content.items()})

    for kind, own in structure["objects"]:
        objects.append(build(kind, own))
    return unpack(structure["value"])


def _fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(kind._fields)
