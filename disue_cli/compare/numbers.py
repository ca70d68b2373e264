"""The numbers of a finished run: those of its summary, what its rounds say, and in which setting it ran."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disue.assignments import assignment
from disue_cli.compare.cells import Cell, Summary
from server_app.config import RunConfig

COLUMNS = (
    *("universal_accuracy", "universal_loss", "average_accuracy", "expert_accuracy", "personal_accuracy"),
    *("worst_decile_accuracy", "num_clusters", "ari", "nmi", "churn", "rounds", "clients"),
    *("clients_failed", "clients_rejected", "client_steps", "personal_steps"),
    *("bytes_up", "bytes_down", "bytes_evaluation", "server_seconds", "seconds_local", "seconds_clustering"),
    *("seconds_distillation", "seconds_evaluation", "wall_seconds", "cpu_seconds"),
)
ACCURACIES = {
    "universal_accuracy": "universal",
    "expert_accuracy": "expert",
    "worst_decile_accuracy": "worst decile",
    "personal_accuracy": "personal",
}
TO_TARGET = ("target_accuracy", "rounds_to_target", "bytes_to_target")
NOT_SAID = frozenset({"method", "scenario", "dataset", "seed", "output-dir", "resume-from", "data-dir", "report"})
"""Keys that have columns of their own, or change no number."""


@dataclass(frozen=True)
class Reported:
    """What of a run's rounds is reported.

    Attributes
    ----------
    last_rounds : int
        Accuracies are means over so many last rounds.
    targets : mapping of dataset to float
        The universal accuracy to which rounds and bytes are counted; they are not for a dataset without one.
    """

    last_rounds: int = 1
    targets: Mapping[str, float] = field(default_factory=dict)

    def column(self, accuracy: str) -> str:
        """Return the column that has an accuracy as it is reported."""
        return accuracy if self.last_rounds == 1 else f"last_{self.last_rounds}_{accuracy}"

    @property
    def columns(self) -> list[str]:
        """All columns of numbers."""
        means = [self.column(accuracy) for accuracy in ACCURACIES] if self.last_rounds > 1 else []
        return [*COLUMNS, *means, *(TO_TARGET if self.targets else ())]


LAST_ROUND = Reported()


def columns_of(cell: Cell, summary: Summary, reported: Reported = LAST_ROUND) -> dict[str, float | int | None]:
    """Return the numbers of a finished run by column; of what is never reached there is none."""
    server_seconds = summary["seconds_clustering"] + summary["seconds_distillation"]
    numbers = {**summary, "server_seconds": server_seconds}
    if reported != LAST_ROUND:
        rows = cell.rows()
        numbers |= {reported.column(name): mean_of_last(rows, name, reported.last_rounds) for name in ACCURACIES}
        target = reported.targets.get(cell.dataset)
        reached = None if target is None else first_reaching(rows, target)
        numbers |= dict(zip(TO_TARGET, (target, *(reached or (None, None))), strict=True))
    return {column: numbers.get(column) for column in reported.columns}


def mean_of_last(rows: Sequence[Mapping[str, Any]], key: str, count: int) -> float | None:
    """Return the mean of a number over so many last rounds, of those that have it; None: none has."""
    known = [row[key] for row in rows[-count:] if row[key] is not None]
    return statistics.mean(known) if known else None


def first_reaching(rows: Sequence[Mapping[str, Any]], target: float) -> tuple[int, int] | None:
    """Return the first round whose universal accuracy is at least a target, and the bytes of training until then.

    Examples
    --------
    >>> rows = [{"round": i, "universal_accuracy": a, "bytes_up": 1, "bytes_down": 2} for i, a in ((1, 0.5), (2, 0.7))]
    >>> first_reaching(rows, 0.6), first_reaching(rows, 0.8)
    ((2, 6), None)
    """
    spent = 0
    for row in rows:
        spent += row["bytes_up"] + row["bytes_down"]
        if row["universal_accuracy"] is not None and row["universal_accuracy"] >= target:
            return row["round"], spent
    return None


def setting(cells: Sequence[Cell]) -> str:
    """Return in which setting runs are, as far as they are alike."""
    settings = settings_of(cells)
    return f"{cells[0].clients} clients, {settings + '; all else' if settings else 'all'} at its default"


def settings_of(cells: Sequence[Cell]) -> str:
    """Return the settings that runs have alike, as ``--set`` takes them, without those that are at their defaults."""
    usual = RunConfig().to_flower()
    configs = [cell.config.to_flower() for cell in cells]
    return " ".join(
        assignment(key, value)
        for key, value in configs[0].items()
        if key not in NOT_SAID and value != usual[key] and all(config[key] == value for config in configs)
    )
