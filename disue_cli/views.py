"""How a run is shown while it goes on: live in a terminal, a line per phase anywhere else."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from disue.errors import one_line
from disue_cli.watching import PHASES, Row, Sight, View, seconds_of

if TYPE_CHECKING:
    from server_app.callbacks.warning_log import Warned

MOST_SIZES = 12
SPARKS = "▁▂▃▄▅▆▇█"
WIDTH_OF_SPARKS = 40


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as it is printed; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def sizes_in_words(sizes: Mapping[int, int]) -> str:
    """Return how many clusters there are, and how many clients each has, the largest first.

    Examples
    --------
    >>> sizes_in_words({0: 4, 1: 6}), sizes_in_words({3: 2})
    ('2 clusters (6, 4)', '1 cluster (2)')
    """
    ordered = sorted(sizes.values(), reverse=True)
    shown = ", ".join(map(str, ordered[:MOST_SIZES])) + (", ..." if len(ordered) > MOST_SIZES else "")
    return f"{len(ordered)} cluster{'' if len(ordered) == 1 else 's'} ({shown})"


def time_in_words(seconds: float | None) -> str:
    """Return how long something will take, roughly.

    Examples
    --------
    >>> [time_in_words(seconds) for seconds in (None, 4.2, 130, 7300)]
    ['-', '4 s', '2 min 10 s', '2 h 1 min']
    """
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def sparks(values: list[float]) -> str:
    """Return a line of blocks, as high as the values are between their lowest and their highest.

    Examples
    --------
    >>> sparks([0.0, 0.5, 1.0])
    '▁▅█'
    """
    shown = values[-WIDTH_OF_SPARKS:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(SPARKS[min(7, int(8 * (value - low) / span))] for value in shown)


ENDING = "the run ends after this round; a second signal ends it at once"


class _Telling:
    """Shows warnings, each once, in lines that stay.

    Parameters
    ----------
    console : Console
        Where a live view is drawn, what is printed is above it.
    rounds : int (default: 0)
        Those that were over before, whose warnings are not shown.
    """

    def __init__(self, console: Console, rounds: int = 0) -> None:
        self.console = console
        self._over = rounds
        self._told: Counter[Warned] = Counter()

    def warn(self, text: str) -> None:
        """Show a line that stays, at once."""
        self.console.print(_warning(text), soft_wrap=True)

    def _tell(self, sight: Sight) -> None:
        """Show what is new of a run's warnings, which lose some when rounds are carried out again."""
        found: Counter[Warned] = Counter()
        for own in sight.warnings:
            found[own] += 1
            if own.round > self._over and found[own] > self._told[own]:
                self.warn(own.text)
        self._told = found


def _warning(text: str) -> Text:
    return Text(f"warning: {one_line(text)}", style="yellow")


class PlainView(_Telling):
    """A line for every phase of a round, and one with its accuracies at its end; for pipes and containers.

    Warnings go to standard error.

    Parameters
    ----------
    console : Console
    rounds : int (default: 0)
        Those that were over before, which are not printed.
    """

    def __init__(self, console: Console, rounds: int = 0) -> None:
        super().__init__(console, rounds)
        self._errors = Console(stderr=True, highlight=False)
        self._rounds = rounds
        self._phases: set[str] = set()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._errors.print(_warning(text), soft_wrap=True)

    def show(self, sight: Sight) -> None:
        """Print the lines of what is over and was not printed yet."""
        self._tell(sight)
        for row in sight.rows[self._rounds :]:
            for phase in PHASES:
                ok, missing = _clients(row)
                clients = {"done": ok, "of": ok + missing} if phase == "local" else {}
                if row.get(f"seconds_{phase}"):
                    self._phase(row["round"], sight, phase, {"seconds": row[f"seconds_{phase}"], **clients})
            sizes = sight.sizes if row is sight.rows[-1] else {}
            self._line(row["round"], sight, _accuracies(row, sizes))
            self._rounds += 1
            self._phases.clear()
        if sight.progress.get("round") == self._rounds + 1:
            for phase, done in sight.progress["finished"].items():
                self._phase(sight.progress["round"], sight, phase, done)

    def _phase(self, number_of_round: int, sight: Sight, phase: str, done: Mapping[str, Any]) -> None:
        if phase in self._phases or phase not in PHASES:
            return
        self._phases.add(phase)
        parts = [PHASES[phase]]
        if done.get("of"):
            parts.append(f"{done['done']} of {done['of']} clients")
        self._line(number_of_round, sight, "  ".join([*parts, f"{done['seconds']:.1f} s"]))

    def _line(self, number_of_round: int, sight: Sight, words: str) -> None:
        rounds = sight.rounds or len(sight.rows)
        width = len(str(rounds))
        self.console.print(f"round {number_of_round:>{width}}/{rounds}  {words}", soft_wrap=True, markup=False)


def _accuracies(row: Row, sizes: Mapping[int, int]) -> str:
    """Return the end of a round in words; of an earlier one the sizes of its clusters are not known."""
    parts = [
        f"universal {number(row.get('universal_accuracy'))}",
        f"expert {number(row.get('expert_accuracy'))}",
        f"average {number(row.get('average_accuracy'))}",
        sizes_in_words(sizes) if sizes else f"{row.get('num_clusters') or 0} clusters",
        f"ari {number(row.get('ari'), 2)}",
        f"{seconds_of(row):.1f} s",
    ]
    if row.get("epsilon") is not None:
        parts.append(f"epsilon {row['epsilon']:.3g}")
    ok, missing = _clients(row)
    if missing:
        parts.append(f"{missing} of {missing + ok} clients missing")
    if row.get("repeats"):
        parts.append("repeated")
    return "  ".join(parts)


def _clients(row: Row) -> tuple[int, int]:
    """Return how many clients a round had, and how many it lost."""
    ok, failed, rejected = (row.get(f"clients_{key}") or 0 for key in ("ok", "failed", "rejected"))
    return ok, failed + rejected


class LiveView(_Telling):
    """One panel that changes in place; for terminals.

    Parameters
    ----------
    live : Live
        Where it is drawn.
    title : str
    rounds : int (default: 0)
        Those that were over before, whose warnings are not shown.
    """

    def __init__(self, live: Live, title: str, rounds: int = 0) -> None:
        super().__init__(live.console, rounds)
        self._ending = False
        self.live = live
        self.title = title

    def show(self, sight: Sight) -> None:
        """Draw the panel anew."""
        self._tell(sight)
        if sight.ending and not self._ending:
            self.console.print(ENDING, soft_wrap=True, markup=False)
        self._ending = sight.ending
        self.live.update(self.panel(sight), refresh=True)

    def panel(self, sight: Sight) -> Panel:
        """Return the panel."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        over = len(sight.rows)
        at = max(over, int(sight.progress.get("round", 0)))
        table.add_row("round", _bar(over, sight.rounds, f"{at} of {sight.rounds}" if sight.rounds else str(at)))
        table.add_row("phase", self._phase(sight))
        for name, key in (("universal", "universal_accuracy"), ("expert", "expert_accuracy")):
            known = [float(row[key]) for row in sight.rows if row.get(key) is not None]
            table.add_row(name, Text(f"{known[-1]:.3f}  {sparks(known)}" if known else "-"))
        last = sight.rows[-1] if sight.rows else {}
        table.add_row("average", Text(f"{number(last.get('average_accuracy'))}  of this run's client models"))
        agreement = "" if last.get("ari") is None else f"  ari {last['ari']:.2f}"
        table.add_row("clusters", Text(sizes_in_words(sight.sizes) + agreement if sight.sizes else "-"))
        if last.get("epsilon") is not None:
            table.add_row("privacy", Text(f"epsilon {last['epsilon']:.3g}  ({last.get('releases')} releases)"))
        table.add_row("time left", Text(time_in_words(0.0 if sight.summary else sight.seconds_left)))
        return Panel(table, title=Text(self.title), title_align="left", expand=False)

    def _phase(self, sight: Sight) -> RenderableType:
        if sight.summary:
            return Text(str(sight.summary.get("status", "over")))
        if not sight.progress:
            return Text("starting" if not sight.rows else "between rounds")
        phase, of = str(sight.progress["phase"]), int(sight.progress["of"])
        name = PHASES.get(phase, phase)
        if not of:
            return Text(name)
        return Group(Text(name), _bar(sight.progress["done"], of, f"{sight.progress['done']} of {of} clients"))


def _bar(done: int, of: int, words: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=max(of, 1), completed=done, width=30), Text(words))
    return row


def is_live(console: Console) -> bool:
    """Return whether what is written can be written over; with ``FORCE_COLOR`` rich takes pipes for terminals."""
    return console.is_terminal and console.file.isatty()


@contextmanager
def view_of(console: Console, title: str, rounds: int = 0) -> Iterator[View]:
    """Give the view that suits where the console writes to; ``rounds``: those that were over before."""
    title = one_line(title)
    if is_live(console):
        with Live(console=console, auto_refresh=False, transient=False) as live:
            yield LiveView(live, title, rounds)
    else:
        yield PlainView(console, rounds)


@contextmanager
def told_through(view: View) -> Iterator[None]:
    """Show what this process warns of, by logging or by Python's warnings, through a view, and not across it."""
    logger, own = logging.getLogger("flwr"), _Through(view)
    others = [handler for handler in logger.handlers if type(handler).__name__ == "ConsoleHandler"]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_: view.warn(f"{category.__name__}: {message}")
        for handler in others:
            logger.removeHandler(handler)
        logger.addHandler(own)
        try:
            yield
        finally:
            logger.removeHandler(own)
            for handler in others:
                logger.addHandler(handler)


class _Through(logging.Handler):
    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.warn(record.getMessage())
