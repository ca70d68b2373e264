"""What a report shows of a run beyond its models and metrics: who was where, who is like whom, who holds what."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from sklearn.decomposition import KernelPCA
from torch import Tensor

from disue.data import Federation, RunData
from disue.files import append, write_whole
from disue.metrics import confusion
from disue.models import fill
from disue.naming import by_name, client_name
from server_app.callbacks.base import Callback, RunContext, RunEnd
from server_app.rows import Row

MEMBERSHIP = "membership.csv"
TENSORS = "portrait.safetensors"
NAMES = "portrait.json"
MOST_SIMILARITIES = 256
"""Clients in the similarity matrix, so that it stays small with any number of clients."""
MOST_ON_MAP = 1000
"""Clients on the map, of whom every pair is compared."""


@dataclass(frozen=True)
class Move:
    """A line of ``membership.csv``: a client comes to a cluster, for the first time or from another one."""

    round: int
    client: str
    cluster: int


class ReportData(Callback):
    """Writes ``membership.csv`` as the run goes, and ``portrait.safetensors`` and ``portrait.json`` at its end.

    Parameters
    ----------
    moves : sequence of Move
        Those of the rounds that are over.

    Attributes
    ----------
    clusters : dict of client to cluster
        As they were last.
    label_counts : dict of client to (classes,) tensor
        What clients last told of their labels; ones and zeros where they tell only which classes they have.
    """

    stateful: ClassVar[tuple[str, ...]] = ("clusters", "label_counts")

    def __init__(self, moves: Sequence[Move] = ()) -> None:
        self.moves = moves
        self.clusters: dict[str, int] = {}
        self.label_counts: dict[str, Tensor] = {}

    def begin(self, run: RunContext) -> None:
        """Write the moves of the rounds that are over."""
        rows = [(move.round, move.client, move.cluster) for move in self.moves]
        write_whole(run.directory / MEMBERSHIP, _csv([("round", "client", "cluster"), *rows]))

    def after_round(self, run: RunContext, row: Row) -> None:
        """Append who is in another cluster than before; the first cluster of a client is one, too."""
        stats = run.strategy.stats
        self.label_counts |= stats.label_counts
        moved = [name for name in by_name(stats.clusters) if self.clusters.get(name) != stats.clusters[name]]
        self.clusters |= stats.clusters
        append(run.directory / MEMBERSHIP, _csv([stats.server_round, name, stats.clusters[name]] for name in moved))

    def end(self, run: RunContext, end: RunEnd) -> None:
        """Write the map of the clients, how similar they are, their labels, and the universal expert's confusion."""
        if end.state is None:
            return
        strategy, task = run.strategy, run.data.task
        signatures = strategy.method.signatures(end.state)
        groups = {client.name: client.group for client in strategy.registry.clients}
        tensors: dict[str, Tensor] = {}
        names: dict[str, object] = {}
        if signatures is not None and signatures.names:
            mapped = by_name(chosen_for_similarity(signatures.names, self.clusters, groups, MOST_ON_MAP))
            gram = signatures.gram(mapped).double().numpy()
            points, share = map_of(gram)
            chosen = chosen_for_similarity(mapped, self.clusters, groups)
            rows = [mapped.index(name) for name in chosen]
            tensors["map"] = torch.from_numpy(points).float()
            tensors["similarity"] = torch.from_numpy(gram[np.ix_(rows, rows)]).float()
            names |= {"map": mapped, "map-share": round(share, 6), "similarity": chosen}
        labels, source = self._labels(run.data)
        if labels:
            tensors["labels"] = torch.stack(list(labels.values())).float()
            names |= {"labels": list(labels), "labels-source": source}
        if run.test is not None and task.scores_strata:
            model = run.model(run.config.model)
            fill(model, end.state.universals[run.config.model])
            tensors["confusion"] = confusion(model, run.test, run.device)
        # In this order: who reads a run that goes on looks for the tensors first, and then for whose they are.
        write_whole(run.directory / NAMES, json.dumps(names, indent=1) + "\n")
        write_whole(run.directory / TENSORS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _labels(self, data: RunData) -> tuple[dict[str, Tensor], str]:
        if self.label_counts:
            told = {name: self.label_counts[name] for name in by_name(self.label_counts)}
            return told, "told"
        if isinstance(data, Federation):
            numbers = {client_name({"partition-id": i}): i for i in range(data.num_clients)}
            if self.clusters.keys() <= numbers.keys():
                return labels_of(data), "scenario"
        return {}, ""


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def labels_of(federation: Federation) -> dict[str, Tensor]:
    """Return the label counts, (classes,), of every client of a simulation."""
    task = federation.task
    return {
        client_name({"partition-id": i}): task.count_strata(federation.client(i).train.y)
        for i in range(federation.num_clients)
    }


def map_of(gram: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return points in the plane, (clients, 2), and the share of the variance that they show.

    The two leading principal components of the vectors whose inner products, (clients, clients), are given; they keep
    the distances between clients as well as any plane can (classical multidimensional scaling).
    """
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    total = float(np.trace(centred))
    points = np.zeros((len(gram), 2))
    if len(gram) < 2 or total <= 1e-12:
        return points, 1.0
    pca = KernelPCA(n_components=2, kernel="precomputed", eigen_solver="dense")
    points[:] = pca.fit_transform(gram)
    return points, float(min(1.0, pca.eigenvalues_.sum() / total))


def chosen_for_similarity(
    names: Sequence[str], clusters: Mapping[str, int], groups: Mapping[str, int], most: int = MOST_SIMILARITIES
) -> list[str]:
    """Return clients ordered by cluster, then planted group, then name; of too many, evenly spaced ones.

    So every cluster has its share of the matrix.
    """
    position = {name: i for i, name in enumerate(by_name(names))}
    ordered = sorted(names, key=lambda name: (clusters.get(name, -1), groups.get(name, -1), position[name]))
    if len(ordered) <= most:
        return ordered
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, most).round().astype(int)]
