"""`disue watch`: follow a run that goes on elsewhere."""

import time
from pathlib import Path

from rich.console import Console

from disue.errors import FederationError
from disue.files import user_path
from disue_cli.terminal import say
from disue_cli.views import view_of
from disue_cli.watching import POLL_SECONDS, look


def watch(directory: Path) -> None:
    """Show a run until it is over; see ``disue watch --help``.

    Raises
    ------
    DataError
        If there is no run in the directory.
    FederationError
        If the run fails, or nobody carries it out any more.
    """
    from server_app.report import read_run
    from server_app.run_lock import is_held

    directory = user_path(directory)
    config = read_run(directory).config
    rounds = int(config.get("num-server-rounds", 0))
    with view_of(Console(highlight=False), f"{config.get('method')} on {config.get('dataset')}: {directory}") as view:
        while True:
            abandoned = is_held(directory) is False  # before the look: the summary is written by who holds it
            sight = look(directory, rounds)
            view.show(sight)
            if sight.summary or abandoned:
                break
            time.sleep(POLL_SECONDS)
    if not sight.summary:
        raise FederationError(
            f"the run was killed after round {len(sight.rows)}; to go on with it: disue simulate --resume {directory}"
        )
    if sight.summary.get("status") == "stopped":
        say(f"{sight.summary['error']}; to go on with it: disue simulate --resume {directory}")
    elif sight.summary.get("status") != "completed":
        raise FederationError(f"the run ended early: {sight.summary.get('error', 'it does not say why')}")
