"""What a run says of its rounds, written as it happens, and how it ended."""

import json

from disue.files import append, folder_inside, whole, write_whole
from server_app.callbacks.base import Callback, RunContext, RunEnd
from server_app.pictures import save_sheet
from server_app.rows import Row


class Recorder(Callback):
    """Writes ``metrics.jsonl``, pictures of generated samples, and ``summary.json``."""

    def begin(self, run: RunContext) -> None:
        """Write the rows of the rounds that are over."""
        write_whole(run.directory / "metrics.jsonl", "".join(map(_line, run.rows.done)))

    def after_round(self, run: RunContext, row: Row) -> None:
        """Append a row."""
        sheet = run.strategy.stats.sheet
        if sheet is not None:
            with whole(folder_inside(run.directory, "generated") / f"round-{row['round']:04}.png") as part:
                save_sheet(sheet, part)
        append(run.directory / "metrics.jsonl", _line(row))

    def end(self, run: RunContext, end: RunEnd) -> None:
        """Say how the run ended."""
        write_whole(run.directory / "summary.json", json.dumps(end.summary, indent=2) + "\n")


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
