"""A run as it is seen from outside: its directory, looked at again and again."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from disue.errors import DataError, DisueError
from disue.files import LARGEST, Whole, checked, json_object, read_text, run_summary

if TYPE_CHECKING:
    from server_app.callbacks.warning_log import Warned

T = TypeVar("T")
Row = dict[str, Any]
Seconds = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]
POLL_SECONDS = 0.2
PHASES = {"local": "local training", "clustering": "clustering", "distillation": "distillation"}
"""Those that have a line of their own; the last line of a round, with its accuracies, comes after evaluation."""


@dataclass(frozen=True)
class Sight:
    """What a run directory shows at one time.

    Attributes
    ----------
    rows : list of dict
        The rounds that are over.
    progress : dict
        ``progress.json``; empty where no round is under way.
    sizes : dict of cluster to int
        Clients in each cluster.
    summary : dict
        Empty until the run is over.
    rounds : int
        In the whole run.
    time : float
        When this was, seconds since the epoch.
    warnings : list of Warned
        What the run warned of, and in which round.
    ending : bool
        Whether it was asked to end after its round.
    """

    rows: list[Row] = field(default_factory=list)
    progress: Row = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    rounds: int = 0
    time: float = 0.0
    warnings: "list[Warned]" = field(default_factory=list)
    ending: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rounds to come will take if they are like the last five; None before any is over."""
        if not self.rows or not self.rounds:
            return None
        each = mean(seconds_of(row) for row in self.rows[-5:])
        spent = 0.0
        if self.progress.get("round", 0) > len(self.rows):
            finished = self.progress["finished"].values()
            spent = self.time - self.progress["since"] + sum(phase["seconds"] for phase in finished)
        return max(0.0, each * (self.rounds - len(self.rows)) - min(spent, each))


class View(Protocol):
    """Shows a run."""

    def warn(self, text: str) -> None:
        """Show a line that stays, at once."""

    def show(self, sight: Sight) -> None:
        """Show what is new."""


def seconds_of(row: Row) -> float:
    """Return the seconds of all phases of a round."""
    return float(sum(value or 0.0 for key, value in row.items() if key.startswith("seconds_")))


def look(directory: Path, rounds: int = 0) -> Sight:
    """Look at a run directory, which may be written at this moment or not be there yet.

    Parameters
    ----------
    directory : Path
    rounds : int
        In the whole run, where ``progress.json`` does not say.

    Raises
    ------
    DataError
        If a file that is never half written is damaged.
    """
    from server_app.callbacks.report_data import Move
    from server_app.callbacks.warning_log import WARNINGS, Warned, warned
    from server_app.report.reading import membership_moves, metrics_rows
    from server_app.stopping import STOP

    progress: Row = _read(directory / "progress.json", _progress, {})
    nobody: list[Move] = []
    nothing: list[Warned] = []
    moves = _read(directory / "membership.csv", membership_moves, nobody)
    clusters = {move.client: move.cluster for move in moves}
    return Sight(
        rows=_read(directory / "metrics.jsonl", metrics_rows, []),
        progress=progress,
        sizes=dict(sorted(Counter(clusters.values()).items())),
        summary=_read(directory / "summary.json", run_summary, {}),
        rounds=int(progress.get("rounds", rounds)),
        warnings=_read(directory / WARNINGS, warned, nothing),
        ending=(directory / STOP).exists(),
        time=time.time(),
    )


def _read(path: Path, parse: Callable[[str], T], missing: T) -> T:
    """Read a file that may come or go at this moment."""
    try:
        return read_text(path, parse, missing)
    except DataError:
        if path.exists():
            raise
        return missing


class _Phase(BaseModel):
    seconds: Seconds
    done: Whole = 0
    of: Whole = 0


class _Progress(BaseModel):
    model_config = ConfigDict(strict=True)

    round: Whole
    rounds: Whole
    phase: str
    done: Whole
    of: Whole
    since: Seconds
    finished: dict[str, _Phase]


def _progress(text: str) -> Row:
    """Parse ``progress.json``."""
    value: Row = json_object(text)
    return checked(_Progress, value) if value else value


@contextmanager
def followed(directory: Path, view: View, rounds: int, warnings: bool = False) -> Iterator[None]:
    """Show a run that goes on inside, from a thread of its own; ``warnings``: show those in its directory, too."""
    over = threading.Event()

    def show() -> None:
        sight = look(directory, rounds)
        view.show(sight if warnings else replace(sight, warnings=[]))

    def follow() -> None:
        with suppress(DisueError, OSError):  # the last look, below, meets it again
            while not over.wait(POLL_SECONDS):
                show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        show()
