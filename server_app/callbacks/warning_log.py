"""What a run warns of, kept in its directory: what a screen showed is gone, and who watches saw none of it."""

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from disue.errors import one_line
from disue.files import append, read_text, write_whole
from server_app.callbacks.base import Callback, RunContext

WARNINGS = "warnings.csv"
HEADER = "round,warning\n"


@dataclass(frozen=True)
class Warned:
    """A line of ``warnings.csv``; what was said before the first round is of that round."""

    round: int
    text: str


class Warnings(logging.Handler, Callback):
    """Takes in what is logged as a warning or worse; it is kept until there is a run directory to write it to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._early: list[str] = []
        self._run: RunContext | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; raise `DiskError` if that is not possible."""
        text = one_line(record.getMessage())
        if self._run is None:
            self._early.append(text)
        else:
            path = self._run.directory / WARNINGS
            if not path.exists():
                write_whole(path, HEADER)
            append(path, _line(Warned(len(self._run.rows.done) + 1, text)))

    def begin(self, run: RunContext) -> None:
        """Write to ``warnings.csv`` from now on; what rounds said that are carried out again is forgotten."""
        path, rounds = run.directory / WARNINGS, len(run.rows.done)
        nothing: list[Warned] = []
        before = [own for own in read_text(path, warned, nothing) if own.round <= rounds]
        lines = [_line(own) for own in (*before, *(Warned(rounds + 1, text) for text in self._early))]
        if lines:
            write_whole(path, HEADER + "".join(lines))
        else:
            path.unlink(missing_ok=True)
        self._run = run


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
