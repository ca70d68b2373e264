"""What a run warns of, kept in its directory: what a screen showed is gone, and who watches saw none of it."""

import csv
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from disue.errors import one_line
from disue.files import append, read_text, write_whole

WARNINGS = "warnings.csv"
HEADER = "round,warning\n"


@dataclass(frozen=True)
class Warned:
    """A line of ``warnings.csv``; what was said before the first round is of that round."""

    round: int
    text: str


class Warnings(logging.Handler):
    """Takes in what is logged as a warning or worse; it is kept until there is a run directory to write it to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._early: list[str] = []
        self._path: Path | None = None
        self._round: Callable[[], int] = lambda: 1

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; raise `DiskError` if that is not possible."""
        text = one_line(record.getMessage())
        if self._path is None:
            self._early.append(text)
        else:
            if not self._path.exists():
                write_whole(self._path, HEADER)
            append(self._path, _line(Warned(self._round(), text)))

    def keep_in(self, directory: Path, rounds: int, current: Callable[[], int]) -> None:
        """Write to ``warnings.csv`` from now on.

        Parameters
        ----------
        directory : Path
            The run directory, which is this process's own.
        rounds : int
            Those that are over; what was said in later ones is forgotten, for they are carried out again.
        current : callable
            Returns the number of the round that is under way.
        """
        path = directory / WARNINGS
        nothing: list[Warned] = []
        before = [own for own in read_text(path, warned, nothing) if own.round <= rounds]
        lines = [_line(own) for own in (*before, *(Warned(rounds + 1, text) for text in self._early))]
        if lines:
            write_whole(path, HEADER + "".join(lines))
        else:
            path.unlink(missing_ok=True)
        self._path, self._round = path, current


@contextmanager
def collected() -> Iterator[Warnings]:
    """Take in what is logged inside."""
    logger, handler = logging.getLogger("flwr"), Warnings()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def warned(text: str) -> list[Warned]:
    """Parse ``warnings.csv``; a last line that is still being written is left out."""
    lines = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True))
    return [Warned(int(line["round"]), one_line(line["warning"])) for line in lines]


def _line(own: Warned) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([own.round, own.text])
    return text.getvalue()
