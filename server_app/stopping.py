"""Ending a run early and well: after the round that is under way, with a checkpoint from which it can go on."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from disue.files import inside, open_inside
from server_app.run_lock import is_held

OVER = "the run is over"  # the last words of a ServerApp that did not fail
STOP = Path("checkpoint", "stop")
"""In a run directory; where it is, the run ends after its round."""
NOTICE = b"disue: the run ends after this round; a second signal ends it at once\n"


class RunStopped(Exception):
    """The run was asked to end after its round, and the round is over."""


def ask_to_stop(directory: Path) -> bool:
    """Ask the run that is carried out in a directory to end after its round; False: there is none."""
    if not is_held(directory):
        return False
    with suppress(FileExistsError):  # the wish is known
        os.close(open_inside(directory, STOP, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    return True


@contextmanager
def stopping(directory: Path) -> Iterator[None]:
    """Forget earlier wishes that the run in a directory should end, and this one when it has."""
    _forget(directory)
    try:
        yield
    finally:
        _forget(directory)


def _forget(directory: Path) -> None:
    (inside(directory, STOP.parent.name) / STOP.name).unlink(missing_ok=True)


def check_stop(directory: Path) -> None:
    """Raise `RunStopped` if the run in a directory was asked to end."""
    if os.path.lexists(directory / STOP):
        raise RunStopped


@contextmanager
def signals_stop(directory: Path, numbers: Sequence[signal.Signals], noticed: bool = False) -> Iterator[None]:
    """Make a first signal a wish that the run ends after its round; a second one does what it did before.

    So does the first where the run has not begun. In a thread, which gets no signals, nothing changes.
    ``noticed``: somebody looks at the directory and tells of the wish, which is said on standard error otherwise.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        give_back()
        if ask_to_stop(directory):
            if not noticed:
                os.write(2, NOTICE)  # printing may be under way
        else:
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        give_back()
