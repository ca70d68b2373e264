"""`disue report`: make a report again, or compare runs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def report(directories: Sequence[Path], output: Path | None) -> None:
    """Write the report and say where; see ``disue report --help``.

    Raises
    ------
    DataError
        If one of the directories holds no run, or a damaged one, or the report cannot be written.
    """
    from server_app.report import write_comparison, write_report

    path = write_report(directories[0], output) if len(directories) == 1 else write_comparison(directories, output)
    Console(highlight=False).print(f"report: {path.absolute()}", soft_wrap=True, markup=False)
