"""`disue report`: make a report again, or compare runs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from disue.files import user_path


def report(directories: Sequence[Path], output: Path | None) -> None:
    """Write the report and say where; see ``disue report --help``.

    Raises
    ------
    DataError
        If one of the directories holds no run, or a damaged one, or the report cannot be written.
    """
    from server_app.report import write_comparison, write_report

    places = [user_path(directory) for directory in directories]
    file = None if output is None else user_path(output, "--output")
    path = write_report(places[0], file) if len(places) == 1 else write_comparison(places, file)
    Console(highlight=False).print(f"report: {path.absolute()}", soft_wrap=True, markup=False)
