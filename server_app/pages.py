"""What a person reads of a run: the model card, and the report."""

from server_app.callbacks.base import Callback, RunContext, RunEnd
from server_app.card import write_card
from server_app.report import write_report


class Pages(Callback):
    """Writes ``MODEL_CARD.md``, and ``report.html`` if it is wished, from what else is in the run directory."""

    def end(self, run: RunContext, end: RunEnd) -> None:
        """Write them, if the run leaves models."""
        if end.state is None:
            return
        write_card(run.directory)
        if run.config.report:
            write_report(run.directory)
