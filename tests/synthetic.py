"""Run directories that no run made, of any size and with names of any kind."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from safetensors.numpy import save_file

from disue.metrics import worst_decile
from server_app.callbacks.report_data import chosen_for_similarity
from server_app.config import RunConfig

CHARTS = {
    *("accuracy", "map", "similarity", "membership", "composition", "teaching", "clients", "confusion"),
    *("seconds", "traffic"),
}
"""What a full report draws."""

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "</script><b>bold</b>",
    "{{ 7 * 7 }}",
    'comma, "quoted"',
    "<a href='javascript:alert(3)'>link</a>",
]
"""Names that would be markup, code or columns if they were not escaped."""


def write_run(
    directory: Path,
    clients: int = 12,
    rounds: int = 10,
    groups: int = 3,
    classes: int = 10,
    name: Callable[[int], str] = "client-{}".format,
    class_names: list[str] | None = None,
    **config: Any,
) -> Path:
    """Write a finished run: client i is of planted group i mod ``groups``, and a tenth of them moves in round 3."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True)
    names = [name(i) for i in range(clients)]
    group = {client: i % groups for i, client in enumerate(names)}
    settings = {
        "task": {"classes": class_names or [str(i) for i in range(classes)]},
        "run": RunConfig.from_flower({"num-server-rounds": rounds, **config}).to_flower(),
        "versions": {"flwr": "1.41.0"},
        "federation": {"clients": names},
    }
    (directory / "config.toml").write_text(tomli_w.dumps(settings))
    accuracies = np.clip(rng.normal(0.85, 0.06, (rounds, clients)) + np.linspace(-0.2, 0, rounds)[:, None], 0, 1)
    rows = [_row(r, accuracies[r], groups) for r in range(rounds)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"status": "completed", "method": "disue", "scenario": "label-groups", "rounds": rounds} | rows[-1]
    (directory / "summary.json").write_text(json.dumps(summary))
    movers = names[:: max(1, 10)]
    moves = [(1, client, (group[client] + 1) % groups if client in movers else group[client]) for client in names]
    moves += [(3, client, group[client]) for client in movers]
    _write(directory / "membership.csv", "round client cluster", moves)
    _write(
        directory / "clients.csv",
        "client group model cluster examples universal_accuracy expert_accuracy personal_accuracy",
        [
            (c, group[c], "cnn", group[c], 100 + i, f"{accuracies[-1, i] - 0.1:.4f}", f"{accuracies[-1, i]:.4f}", "")
            for i, c in enumerate(names)
        ],
    )
    weights = rng.dirichlet(np.ones(groups), classes)
    _write(
        directory / "teaching.csv",
        "expert class weight samples",
        [(k, c, f"{weights[c, k]:.4f}", 20) for k in range(groups) for c in range(classes)],
    )
    centres = rng.normal(size=(groups, 2))
    points = np.array([centres[i % groups] for i in range(clients)]) + rng.normal(0, 0.1, (clients, 2))
    shown = chosen_for_similarity(names, group, group)
    of = np.array([group[client] for client in shown])
    tensors = {
        "map": points.astype(np.float32),
        "similarity": np.where(of[:, None] == of, 0.9, 0.1).astype(np.float32),
        "labels": rng.integers(0, 50, (clients, classes)).astype(np.float32),
        "confusion": rng.integers(0, 50, (classes, classes)),
    }
    save_file(tensors, directory / "portrait.safetensors")
    portrait = {"map": names, "map-share": 0.7, "similarity": shown, "labels": names, "labels-source": "told"}
    (directory / "portrait.json").write_text(json.dumps(portrait))
    return directory


def _row(index: int, accuracies: Any, groups: int) -> dict[str, Any]:
    return {
        "round": index + 1,
        "universal_accuracy": 0.6 + 0.01 * min(index, 25),
        "universal_loss": 1.0,
        "average_accuracy": 0.58 + 0.01 * min(index, 25),
        "expert_accuracy": float(accuracies.mean()),
        "expert_accuracy_p10": float(np.quantile(accuracies, 0.1)),
        "expert_accuracy_p90": float(np.quantile(accuracies, 0.9)),
        "personal_accuracy": None,
        "worst_decile_accuracy": worst_decile(list(accuracies)),
        "num_clusters": groups,
        "ari": 1.0 if index >= 2 else 0.8,
        "nmi": 1.0,
        "churn": 0.1 if index == 2 else 0.0,
        "clients_ok": len(accuracies),
        "clients_failed": 0,
        "clients_rejected": 0,
        "bytes_down": 2_000_000,
        "bytes_up": 1_000_000,
        "bytes_evaluation": 3_000_000,
        "seconds_local": 2.0,
        "seconds_clustering": 0.5,
        "seconds_distillation": 1.0,
        "seconds_evaluation": 0.5,
    }


def _write(path: Path, columns: str, rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])
