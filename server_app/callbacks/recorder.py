"""The run directory: what a run leaves behind, written as it happens."""

import csv
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tomli_w

from disue.errors import ConfigError, DataError
from disue.files import (
    LARGEST,
    PARTS,
    RUN_FORMAT,
    append,
    folder_inside,
    inside,
    user_path,
    whole,
    write_tensors,
    write_whole,
)
from disue.metrics import Evaluation, agreement_with_groups, churn, worst_decile
from disue.models import State
from disue.naming import by_name
from disue.runs.gate import Gate
from disue.tasks import Task
from disue.wire import EvaluateReply
from server_app.config import RunConfig
from server_app.pictures import save_sheet
from server_app.run_lock import LOCK
from server_app.scoring import Scores
from strategies.distillation.teachers import VoteSummary
from strategies.methods.base import MethodState
from strategies.rounds.registry import Client
from strategies.rounds.stats import RoundStats

PACKAGES = ("flwr", "torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors")
TOTALS = ("clients_failed", "clients_rejected", "repeats", "client_steps", "personal_steps", "guard_kept_average")
Row = dict[str, Any]
BEFORE_THE_CONFIG = (LOCK.parent.as_posix(), LOCK.as_posix(), ".config.toml.*.part")
"""What a process that was killed as it made a run directory may have left there."""
AT_THE_END = (
    *("summary.json", "clients.csv", "teaching.csv", "portrait.safetensors", "portrait.json", "report.html"),
    *("gate.safetensors", "MODEL_CARD.md", "universal*.safetensors", "experts/*.safetensors"),
)


def default_directory(config: RunConfig) -> Path:
    """Return the absolute run directory for a config.

    It is ``resume-from``, or else ``output-dir``, or else a new ``runs/<date-time>-<method>``.

    Raises
    ------
    DataError
        If the one that is named can be no path, or begins with the home of a user who does not exist.
    """
    for key, value in (("resume-from", config.resume_from), ("output-dir", config.output_dir)):
        if value:
            return user_path(value, key).absolute()
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.method}"
    candidates = (Path("runs").absolute() / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def check_directory(directory: Path) -> None:
    """Raise `ConfigError` if a run cannot be written there; nothing is left behind.

    The directory must be missing or empty. That it can be written is tried with a file: permissions alone do not
    tell, least of all to root. A directory that is missing is tried by one of another name beside it, so that of two
    who look at once neither takes it away from the other.
    """
    try:
        if directory.is_dir() and not all(_is_left_over(path, directory) for path in directory.rglob("*")):
            raise ConfigError(f"output-dir: '{directory}' is not empty; name another directory")
        there = next(path for path in (directory, *directory.parents) if path.is_symlink() or path.exists())
        with (
            nullcontext(there)
            if there == directory
            else tempfile.TemporaryDirectory(prefix=".disue-", dir=there) as place,
            tempfile.TemporaryFile(dir=place),
        ):
            pass
    except OSError as error:
        raise ConfigError(f"output-dir: '{directory}' cannot be written ({error.strerror})") from None


def _is_left_over(path: Path, directory: Path) -> bool:
    name = path.relative_to(directory).as_posix()
    return not path.is_symlink() and any(fnmatchcase(name, pattern) for pattern in BEFORE_THE_CONFIG)


def forget_after(directory: Path, rounds: int) -> None:
    """Remove what a run wrote at its end, and the pictures of rounds after so many."""
    inside(directory, "experts")
    pictures = inside(directory, "generated").glob("round-[0-9][0-9][0-9][0-9]*.png")
    later = (path for path in pictures if int(path.stem.removeprefix("round-")) > rounds)
    ends = (path for pattern in AT_THE_END for path in directory.glob(pattern))
    for path in itertools.chain(ends, later, directory.rglob(PARTS)):
        if path.is_dir() and not path.is_symlink():
            raise DataError(f"'{path}' is no file; remove it")
        path.unlink(missing_ok=True)


@cache
def _versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


class Recorder:
    """Writes the run directory, and tells listeners about every row.

    Parameters
    ----------
    directory : Path
        It exists, and is empty or holds a run of the same config that goes on.
    config : RunConfig
        Written resolved, with the package versions.
    task : Task
        What the models are for, and how inputs are made to what they take.
    clients : list of Client
        Everyone who said hello.
    on_round : callable, optional
        Called with each new row of ``metrics.jsonl``.
    rows : sequence of dict
        Those of the rounds that are over.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_clusters",)

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        task: Task,
        clients: list[Client],
        on_round: Callable[[Row], None] | None = None,
        rows: Sequence[Row] = (),
    ) -> None:
        self.directory = directory
        self.config = config
        self.task = task
        self.on_round = on_round
        self.clients = {client.name: client for client in clients}
        self._rows: list[Row] = list(rows)
        self._clusters: dict[str, int] = {}
        settings = {
            "format": RUN_FORMAT,
            "task": task.to_settings(),
            "run": config.to_flower() | {"output-dir": str(directory), "resume-from": ""},
            "versions": dict(_versions()),
            "federation": {
                "clients": [client.name for client in clients],
                "partitions": max(client.num_partitions for client in clients),
            },
        }
        write_whole(directory / "config.toml", tomli_w.dumps(settings))
        write_whole(directory / "metrics.jsonl", "".join(map(_line, rows)))

    @property
    def rounds(self) -> int:
        """How many rounds are recorded."""
        return len(self._rows)

    def record_round(
        self,
        stats: RoundStats,
        clients: list[Client],
        scores: Scores,
    ) -> Row:
        """Append one row to ``metrics.jsonl`` and return it.

        Parameters
        ----------
        stats : RoundStats
        clients : list of Client
            Those that take or took part.
        scores : Scores
            Of the universal models.
        """
        self.clients |= {client.name: client for client in clients}
        experts = [reply.expert_accuracy for reply in stats.evaluations.values()]
        personal = [
            reply.personal_accuracy for reply in stats.evaluations.values() if reply.personal_accuracy is not None
        ]
        agreement = agreement_with_groups(
            list(stats.clusters.values()), [self.clients[name].group for name in stats.clusters]
        )
        row: Row = {
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
            "churn": churn(self._clusters, stats.clusters),
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
        row = {
            key: None if isinstance(value, float) and not -LARGEST < value < LARGEST else value
            for key, value in row.items()
        }
        self._clusters |= stats.clusters
        self._rows.append(row)
        if stats.sheet is not None:
            with whole(folder_inside(self.directory, "generated") / f"round-{stats.server_round:04}.png") as part:
                save_sheet(stats.sheet, part)
        append(self.directory / "metrics.jsonl", _line(row))
        if self.on_round:
            self.on_round(row)
        return row

    def save(self, state: MethodState, main: str, gate: Gate, evaluations: Mapping[str, EvaluateReply]) -> None:
        """Write ``clients.csv``, ``teaching.csv`` and models; last the universal ones: with them all is there.

        Parameters
        ----------
        state : MethodState
            After the last round.
        main : str
            The run's own architecture.
        gate : Gate
        evaluations : mapping of client to EvaluateReply
            Of the last round.
        """
        self._write_clients(state.clusters, evaluations)
        if state.votes is not None:
            self._write_votes(state.votes)
        if gate.experts or gate.descriptions:
            gate.save(self.directory)
        experts = folder_inside(self.directory, "experts")
        for team, expert in state.experts.items():
            self._save(expert, team.model, experts / f"expert-{team.label(main)}.safetensors")
        for model, universal in reversed(list(state.universals.items())):  # the run's own at the end
            name = "universal" if model == main else f"universal-{model}"
            self._save(universal, model, self.directory / f"{name}.safetensors")

    def finish(self) -> Row:
        """Write ``summary.json``, which says that the run is over, and return it."""
        return self._write_summary(self._summary("completed"))

    def fail(self, error: BaseException) -> None:
        """Write a ``summary.json`` that says why the run ended early."""
        self._write_summary(self._summary("failed") | {"error": str(error) or type(error).__name__})

    def stop(self) -> Row:
        """Write a ``summary.json`` that says that the run can go on, and return it."""
        why = f"it was asked to end after round {len(self._rows)}"
        return self._write_summary(self._summary("stopped") | {"error": why})

    def _write_summary(self, summary: Row) -> Row:
        write_whole(self.directory / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _summary(self, status: str) -> Row:
        """Return how the run ended, the numbers of its last round, and the sums of those that are counted."""
        last = {key: value for row in self._rows[-1:] for key, value in row.items() if key != "round"}
        totals = {key for row in self._rows for key in row if _is_total(key)}
        sums = {key: sum(row.get(key) or 0 for row in self._rows) for key in sorted(totals)}
        return self._of_the_run(status) | last | sums

    def _of_the_run(self, status: str) -> Row:
        return {
            "status": status,
            "method": self.config.method,
            "scenario": self.config.scenario_name,
            "dataset": self.config.dataset,
            "seed": self.config.seed,
            "rounds": len(self._rows),
            "clients": len(self.clients),
        }

    def _write_clients(self, clusters: Mapping[str, int], evaluations: Mapping[str, EvaluateReply]) -> None:
        columns = [
            "client",
            "group",
            "model",
            "cluster",
            "examples",
            "universal_accuracy",
            "expert_accuracy",
            "personal_accuracy",
        ]
        with whole(self.directory / "clients.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for client in (self.clients[name] for name in by_name(self.clients)):
                reply = evaluations.get(client.name)
                accuracies = (reply.universal_accuracy, reply.expert_accuracy, reply.personal_accuracy) if reply else ()
                group = "" if client.group < 0 else client.group
                cluster = clusters.get(client.name, "")
                writer.writerow(
                    [client.name, group, client.model, cluster, client.num_examples or ""]
                    + [f"{value:.4f}" if value is not None else "" for value in accuracies]
                )

    def _metrics(self, model: str, score: Evaluation | None) -> Row:
        """Return the task's metrics of a model, as the keys of a row; None where they are not known."""
        return {f"{model}_{name}": score.metrics[name] if score else None for name in self.task.metric_names}

    def _write_votes(self, last: VoteSummary) -> None:
        """Write who taught what in the last round."""
        weights, counts = last.by_stratum(self.task.num_strata)
        lines = ["expert,class,weight,samples\n"]
        for expert, row in zip(last.experts, weights.tolist(), strict=True):
            lines += [
                f"{expert},{label},{weight:.4f},{count}\n"
                for label, (weight, count) in enumerate(zip(row, counts.tolist(), strict=True))
            ]
        write_whole(self.directory / "teaching.csv", "".join(lines))

    def _save(self, state: State, model: str, path: Path) -> None:
        write_tensors(path, state, {"model": model or self.config.model, "dataset": self.config.dataset})


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _is_total(key: str) -> bool:
    return key.startswith(("bytes_", "seconds_")) or key in TOTALS
