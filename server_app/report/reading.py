"""A run directory, read and checked: what is there is whole, and what is not there yet is empty."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from disue.config.data import DataSettings
from disue.errors import DataError
from disue.files import ADVICE, LARGEST, NOT_PARSED, json_numbers, json_object, read_text, run_summary
from disue.tasks.classification import MOST_CLASSES
from server_app.callbacks.report_data import MEMBERSHIP, NAMES, TENSORS, Move
from server_app.config import stored_settings

T = TypeVar("T")
Row = dict[str, Any]
BASELINES = "baselines"
"""In a run directory: the runs of other methods that it is compared with, each in a directory named as its method."""
DATA_KEYS = tuple(key for key in DataSettings.declared_keys() if key != "data-dir")
"""What decides, beside the seed and the number of clients, who holds what."""
LARGEST_VALUE = 1e15
"""Of what is drawn from ``portrait.safetensors``."""


@dataclass(frozen=True)
class ClientRow:
    """A line of ``clients.csv``; what is not known is None, and a number of examples that was not told is 0."""

    name: str
    group: int | None
    model: str
    cluster: int | None
    examples: int
    universal: float | None
    expert: float | None
    personal: float | None


@dataclass(frozen=True)
class Taught:
    """A line of ``teaching.csv``: an expert's mean weight in the vote on the samples of a class."""

    expert: str
    label: int
    weight: float
    samples: int


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind, or has left so far.

    Attributes
    ----------
    directory : Path
    settings : dict
        ``config.toml``.
    rows : list of dict
        ``metrics.jsonl``.
    summary : dict
        ``summary.json``; empty while the run goes on.
    clients : list of ClientRow
        Empty until the run is over.
    moves : list of Move
    teaching : list of Taught
    arrays : dict of str to array
        ``portrait.safetensors``.
    names : dict
        ``portrait.json``: whose the rows of the arrays are.
    baselines : dict of str to dict
        ``baselines/*/summary.json``, of other methods with as many rounds, the same clients and the same seed, by the
        name of the method.
    unlike : dict of str to str
        Baselines that are over and not like the run, by the name of the method: what is another.
    """

    directory: Path
    settings: Row
    rows: list[Row]
    summary: Row = field(default_factory=dict)
    clients: list[ClientRow] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    teaching: list[Taught] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    names: Row = field(default_factory=dict)
    baselines: dict[str, Row] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Row:
        """The resolved run config."""
        run: Row = self.settings["run"]
        return run

    @property
    def client_names(self) -> list[str]:
        """Everyone who was there at the start."""
        return [str(name) for name in self.settings.get("federation", {}).get("clients", [])]

    @property
    def clusters(self) -> dict[str, int]:
        """The clusters as they were last."""
        return {move.client: move.cluster for move in self.moves}

    @property
    def groups(self) -> dict[str, int]:
        """The planted groups, where they are known."""
        return {client.name: client.group for client in self.clients if client.group is not None}

    def class_names(self, count: int) -> list[str]:
        """Return the names of the classes, or their numbers where they have none."""
        names = self.settings.get("task", {}).get("classes", [])
        return [str(name) for name in names] if len(names) == count else [str(i) for i in range(count)]


def read_run(directory: Path) -> RunRecord:
    """Read a run directory.

    Raises
    ------
    DataError
        If there is no run in it, or a file is damaged: one line that names the file.
    """
    if not directory.is_dir():
        raise DataError(f"'{directory}' is no directory; name the directory of a run")
    settings = _read_required(directory / "config.toml", stored_settings)
    rows = _read_required(directory / "metrics.jsonl", metrics_rows)
    record = RunRecord(
        directory=directory,
        settings=settings,
        rows=rows,
        summary=read_text(directory / "summary.json", run_summary, {}),
        clients=read_text(directory / "clients.csv", _clients, []),
        moves=read_text(directory / MEMBERSHIP, membership_moves, []),
        teaching=read_text(directory / "teaching.csv", teaching_shares, []),
        arrays=_read_arrays(directory / TENSORS),
        names=read_text(directory / NAMES, _portrait_names, {}),
    )
    for name, (baseline, summary) in _baselines(directory / BASELINES).items():
        if difference := _difference(settings, len(rows), baseline, int(summary["rounds"])):
            record.unlike[name] = difference
        else:
            record.baselines[name] = summary
    _check_portrait(record)
    return record


def _read_required(path: Path, parse: Callable[[str], T]) -> T:
    if not path.is_file():
        raise DataError(f"'{path.parent}': there is no run here ({path.name} is missing); name the directory of a run")
    return read_text(path, parse)


def metrics_rows(text: str) -> list[Row]:
    """Parse ``metrics.jsonl``; a last line that is still being written is left out."""
    rows: list[Row] = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            row = json_numbers(line)
        except ValueError as error:
            raise ValueError(f"line {len(rows) + 1} is no round: {error}") from None
        if type(row.get("round")) is not int or not 0 < row["round"] < 10**9:
            raise ValueError(f"line {len(rows) + 1} is no round")
        rows.append(row)
    return rows


def membership_moves(text: str) -> list[Move]:
    """Parse ``membership.csv``; a last line that is still being written is left out."""
    lines = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True))
    return [Move(int(line["round"]), line["client"], int(line["cluster"])) for line in lines]


def _baselines(directory: Path) -> dict[str, tuple[Row, Row]]:
    """Return the settings and the summaries of the baselines that are over."""
    places = [path.parent for path in sorted(directory.glob("*/summary.json"))]
    found = {
        place.name: (
            read_text(place / "config.toml", stored_settings),
            read_text(place / "summary.json", _baseline_summary),
        )
        for place in places
    }
    return {name: own for name, own in found.items() if own[1].get("status") == "completed"}


def _baseline_summary(text: str) -> Row:
    summary: Row = run_summary(text)
    if type(summary.get("rounds")) is not int:
        raise ValueError(f"rounds is {summary.get('rounds')!r}")
    return summary


def _difference(run: Row, rounds: int, baseline: Row, its_rounds: int) -> str:
    """Return what keeps a baseline from being compared with a run; nothing if nothing does."""
    if rounds != its_rounds:
        return f"it has {its_rounds} round{'' if its_rounds == 1 else 's'}, the run {rounds}"
    for key in ("seed", *DATA_KEYS):
        if (ours := run["run"].get(key)) != (its := baseline["run"].get(key)):
            return f"its {key} is {its}, the run's {ours}"
    ours, its = (sorted(map(str, settings.get("federation", {}).get("clients", []))) for settings in (run, baseline))
    return "" if ours == its else "its clients are others"


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.exists():
        return {}
    try:
        if not path.is_file():
            raise DataError(f"'{path}' cannot be read (it is no file)")
        arrays = dict(load_file(path))
        for name, array in arrays.items():
            if array.size and not float(np.abs(array).max()) < LARGEST_VALUE:  # also if one is not a number
                raise ValueError(f"'{name}' has values that cannot be drawn")
        return arrays
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror or error})") from None
    except (SafetensorError, *NOT_PARSED) as error:
        raise DataError(f"'{path}' is damaged ({error}); {ADVICE}") from None


def _number(text: str) -> float | None:
    return _finite(text) if text else None


def _finite(text: str) -> float:
    value = float(text)
    if not -LARGEST < value < LARGEST:
        raise ValueError(f"{text} is no finite number")
    return value


def _text(cell: str | None) -> str:
    if cell is None:
        raise ValueError("a line is cut short")
    return cell


def _label(text: str) -> int:
    if not 0 <= (label := int(text)) < MOST_CLASSES:
        raise ValueError(f"{label} is no class")
    return label


def _whole(text: str) -> int | None:
    return int(text) if text else None


def _clients(text: str) -> list[ClientRow]:
    return [
        ClientRow(
            name=_text(line["client"]),
            group=_whole(line["group"]),
            model=_text(line["model"]),
            cluster=_whole(line["cluster"]),
            examples=int(line["examples"] or 0),
            universal=_number(line["universal_accuracy"]),
            expert=_number(line["expert_accuracy"]),
            personal=_number(line["personal_accuracy"]),
        )
        for line in csv.DictReader(text.splitlines(keepends=True))
    ]


def teaching_shares(text: str) -> list[Taught]:
    """Parse ``teaching.csv``."""
    return [
        Taught(line["expert"], _label(line["class"]), _finite(line["weight"]), int(line["samples"]))
        for line in csv.DictReader(text.splitlines(keepends=True))
    ]


def _portrait_names(text: str) -> Row:
    names = json_object(text)
    share, source = names.get("map-share", 1.0), names.get("labels-source", "")
    if not isinstance(share, int | float) or not -LARGEST < share < LARGEST or not isinstance(source, str):
        raise ValueError(f"map-share is {share!r}, labels-source is {source!r}")
    return names


def _check_portrait(record: RunRecord) -> None:
    shapes = {"map": (..., 2), "similarity": (..., ...), "labels": (..., ...), "confusion": (..., ...)}
    for key, array in record.arrays.items():
        names = record.names.get(key)
        fits = array.ndim == 2 and shapes.get(key, (..., ...))[1] in (..., array.shape[1])
        named = key == "confusion" or (isinstance(names, list) and len(names) == len(array))
        named = named and all(isinstance(name, str) for name in names or [])
        mapped = key != "similarity" or "map" in record.arrays
        square = key not in ("similarity", "confusion") or array.shape[0] == array.shape[-1]
        if not (fits and named and mapped and square):
            raise DataError(
                f"'{record.directory / TENSORS}' is damaged ('{key}' does not fit {NAMES}); run it again, "
                "or restore both files"
            )
