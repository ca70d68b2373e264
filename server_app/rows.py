"""The rows of ``metrics.jsonl``, one for each round, and the numbers of ``summary.json``."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from disue.files import LARGEST
from disue.metrics import Evaluation, agreement_with_groups, churn, worst_decile
from server_app.config import RunConfig
from server_app.scoring import Scores
from strategies.rounds.registry import Client
from strategies.rounds.stats import RoundStats

Row = dict[str, Any]
TOTALS = ("clients_failed", "clients_rejected", "repeats", "client_steps", "personal_steps", "guard_kept_average")


class Rows:
    """What the rounds of a run came to.

    Parameters
    ----------
    metric_names : sequence of str
        The metrics of the run's task.
    done : sequence of dict
        The rows of the rounds that are over.

    Attributes
    ----------
    done : list of dict
        One row for each round that is over.
    clusters : dict of client to cluster
        As they were last.
    """

    stateful: ClassVar[tuple[str, ...]] = ("clusters",)

    def __init__(self, metric_names: Sequence[str], done: Sequence[Row] = ()) -> None:
        self.metric_names = metric_names
        self.done = list(done)
        self.clusters: dict[str, int] = {}

    def add(self, stats: RoundStats, scores: Scores, clients: Sequence[Client]) -> Row:
        """Return the row of another round.

        Parameters
        ----------
        stats : RoundStats
        scores : Scores
            Of the universal models.
        clients : sequence of Client
            Those that take or took part.
        """
        groups = {client.name: client.group for client in clients}
        experts = [reply.expert_accuracy for reply in stats.evaluations.values()]
        personal = [
            reply.personal_accuracy for reply in stats.evaluations.values() if reply.personal_accuracy is not None
        ]
        agreement = agreement_with_groups(list(stats.clusters.values()), [groups[name] for name in stats.clusters])
        told: Row = {
            "round": stats.server_round,
            **self._metrics("universal", scores.universal),
            "universal_loss": scores.universal.loss if scores.universal else None,
            **{
                f"{key}_{model}": value
                for model, score in scores.others.items()
                for key, value in self._metrics("universal", score).items()
            },
            **self._metrics("average", scores.average),
            "expert_accuracy": float(np.mean(experts)) if experts else None,
            "personal_accuracy": float(np.mean(personal)) if personal else None,
            "worst_decile_accuracy": worst_decile(experts) if experts else None,
            "expert_accuracy_p10": float(np.quantile(experts, 0.1)) if experts else None,
            "expert_accuracy_p90": float(np.quantile(experts, 0.9)) if experts else None,
            "num_clusters": len(set(stats.clusters.values())),
            "ari": agreement[0] if agreement else None,
            "nmi": agreement[1] if agreement else None,
            "churn": churn(self.clusters, stats.clusters),
            "clients_ok": stats.clients_ok,
            "clients_failed": stats.clients_failed,
            "clients_rejected": stats.clients_rejected,
            "repeats": stats.repeats,
            "client_steps": stats.client_steps,
            "personal_steps": sum(reply.personal_steps for reply in stats.evaluations.values()),
            "train_loss": stats.train_loss,
            "bytes_down": stats.bytes_down,
            "bytes_up": stats.bytes_up,
            "bytes_evaluation": stats.bytes_evaluation,
            **{f"seconds_{phase}": round(seconds, 4) for phase, seconds in stats.seconds.items()},
            **stats.metrics,
        }
        row = finite(told)
        self.clusters |= stats.clusters
        self.done.append(row)
        return row

    def _metrics(self, model: str, score: Evaluation | None) -> Row:
        """Return the task's metrics of a model, as the keys of a row; None where they are not known."""
        return {f"{model}_{name}": score.metrics[name] if score else None for name in self.metric_names}


def finite(row: Row) -> Row:
    """Return a row with None in place of each number that no file should hold.

    Examples
    --------
    >>> finite({"train_loss": float("nan"), "epsilon": float("inf"), "clients_ok": 3})
    {'train_loss': None, 'epsilon': None, 'clients_ok': 3}
    """
    return {
        key: None if isinstance(value, float) and not -LARGEST < value < LARGEST else value
        for key, value in row.items()
    }


def summary_of(config: RunConfig, clients: int, rows: Sequence[Row], status: str, why: str = "") -> Row:
    """Return the contents of ``summary.json``.

    They are how the run ended, the numbers of its last round, and the sums of those that are counted.

    Parameters
    ----------
    config : RunConfig
    clients : int
        How many take or took part.
    rows : sequence of dict
    status : str
        ``completed``, ``stopped`` or ``failed``.
    why : str, optional
        Why the run was stopped or failed.
    """
    last = {key: value for row in rows[-1:] for key, value in row.items() if key != "round"}
    totals = {key for row in rows for key in row if _is_total(key)}
    sums = {key: sum(row.get(key) or 0 for row in rows) for key in sorted(totals)}
    of_the_run = {
        "status": status,
        "method": config.method,
        "scenario": config.scenario_name,
        "dataset": config.dataset,
        "seed": config.seed,
        "rounds": len(rows),
        "clients": clients,
    }
    return of_the_run | last | sums | ({"error": why} if why else {})


def _is_total(key: str) -> bool:
    return key.startswith(("bytes_", "seconds_")) or key in TOTALS
