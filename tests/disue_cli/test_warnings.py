"""What a run warns of is seen whole while a view changes in place, and is there afterwards."""

import io
import logging
import re
import warnings
from pathlib import Path

import pytest
from flwr.common.logger import log
from rich.console import Console
from rich.live import Live
from synthetic import write_run
from tests_support import numbered_classes, run_context

from disue.errors import DataError
from disue_cli.engines.inline import run_inline
from disue_cli.views import ENDING, LiveView, PlainView, told_through
from disue_cli.watching import Sight, followed, look
from server_app.callbacks.warning_log import WARNINGS, Warned, Warnings, collected, warned
from server_app.resume import resumed_config
from server_app.run_data import AgreedData
from server_app.run_lock import exclusive
from server_app.stopping import STOP

LONG = "client-7 [bold]could not[/bold] be reached: " + "the network is down, " * 10 + "and so it is left out"


def screen(output: str) -> list[str]:
    """Return the lines that a terminal shows after this output: of control sequences only up, and erasing, move."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part[0] not in "\x1b\r":
            lines[row] += part
    return [line.rstrip() for line in lines]


def live(out: io.StringIO) -> Live:
    return Live(console=Console(file=out, force_terminal=True, width=400, highlight=False), auto_refresh=False)


def test_a_warning_stays_above_the_panel_and_breaks_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    sight = Sight(rows=[{"round": 1}], rounds=3)
    handlers = list(logging.getLogger("flwr").handlers)
    with live(out) as drawn, told_through(view := LiveView(drawn, "a run")):
        view.show(sight)
        log(logging.WARNING, "%s", LONG)
        view.show(sight)
        warnings.warn("the order is\nodd", UserWarning, stacklevel=1)
        log(logging.INFO, "of no interest")
        view.show(sight)
    shown = screen(out.getvalue())
    assert shown[:2] == [f"warning: {LONG}", "warning: UserWarning: the order is odd"]
    assert [line for line in shown[2:] if "─ a run ─" in line or line.startswith("╭")] == [shown[2]]
    assert sum(line.startswith("╰") for line in shown) == 1
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("flwr").handlers == handlers


def test_a_run_watched_from_outside_shows_each_warning_once_and_that_it_will_end() -> None:
    out = io.StringIO()
    first, second = (
        Sight(rounds=3, warnings=[Warned(1, "one")]),
        Sight(rounds=3, warnings=[Warned(1, "one"), Warned(1, "two")], ending=True),
    )
    with live(out) as drawn:
        view = LiveView(drawn, "a run")
        for sight in (first, first, second, second):
            view.show(sight)
    assert [line for line in screen(out.getvalue()) if line and line[0] not in "╭│╰"] == [
        "warning: one",
        "warning: two",
        ENDING,
    ]


@pytest.mark.parametrize("kind", ["live", "plain"])
def test_a_resumed_run_shows_what_it_warns_of_and_nothing_of_the_rounds_before(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file becomes shorter when the run goes on, and may then have as many lines again."""
    out = io.StringIO()
    before = [Warned(1, "early"), Warned(2, "lost"), Warned(3, "cut off"), Warned(3, "again")]
    after = [Warned(1, "early"), Warned(3, "again"), Warned(3, "new"), Warned(3, "new")]
    with live(out) as drawn:
        view = LiveView(drawn, "a run", 2) if kind == "live" else PlainView(Console(file=out), 2)
        for found in (before, before[:2], after[:2], after, after):
            view.show(Sight(rounds=4, warnings=found))
    lines = [*screen(out.getvalue()), *capsys.readouterr().err.splitlines()]
    told = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert told == ["cut off", "again", "again", "new", "new"]


def test_in_a_pipe_warnings_are_errors_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(Console(highlight=False))
    for _ in range(2):
        view.show(Sight(rounds=3, warnings=[Warned(1, LONG)]))
    assert capsys.readouterr() == ("", f"warning: {LONG}\n")


def test_a_run_keeps_what_it_warns_of_and_says_it_again_when_it_is_watched(
    run,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    with followed(tmp_path / "run-1", PlainView(Console(file=io.StringIO())), 1, warnings=True):
        result = run(clients=4, num_groups=6, num_server_rounds=1, method="fedavg")
    text = "num-groups: got 6; there are 4 clients, so 2 of the groups are empty"
    assert (result.directory / WARNINGS).read_text() == f'round,warning\n1,"{text}"\n'
    assert look(result.directory).warnings == [Warned(1, text)]
    assert f"warning: {text}\n" in capsys.readouterr().err
    summary = run_inline(resumed_config({"resume-from": str(result.directory), "num-server-rounds": 2}), 4)
    assert summary["rounds"] == 2
    assert [own.round for own in warned((result.directory / WARNINGS).read_text())] == [1, 2]
    assert not (run(clients=4, num_groups=2, num_server_rounds=1, method="fedavg").directory / WARNINGS).exists()


def test_rounds_that_are_carried_out_again_warn_again(tmp_path: Path) -> None:
    (tmp_path / WARNINGS).write_text("round,warning\n1,early\n2,late\n3,cut sho")
    context = run_context(tmp_path, AgreedData(numbered_classes(2)), done=[{"round": 1}])
    with collected() as taken:
        log(logging.WARNING, 'it goes on, "so" to say')
        taken.begin(context)
        log(logging.WARNING, "late")
        context.rows.done.append({"round": 2})
        log(logging.ERROR, "worse")
    expected = [Warned(1, "early"), Warned(2, 'it goes on, "so" to say'), Warned(2, "late"), Warned(3, "worse")]
    assert warned((tmp_path / WARNINGS).read_text()) == expected
    log(logging.WARNING, "after it")
    assert look(tmp_path).warnings == expected
    Warnings().begin(run_context(tmp_path, AgreedData(numbered_classes(2))))
    assert not (tmp_path / WARNINGS).exists()


def test_a_file_of_warnings_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / WARNINGS).write_text("round,warning\nx,y\n")
    with pytest.raises(DataError, match="warnings.csv' is damaged"):
        look(tmp_path)


def test_a_wish_that_the_run_ends_is_seen(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", rounds=1)
    with exclusive(directory):
        assert not look(directory).ending
        (directory / STOP).touch()
        assert look(directory).ending
