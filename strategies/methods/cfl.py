"""CFL: a cluster whose training has come to rest, while its clients still pull, is cut in two.

Sattler, Müller and Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization Under
Privacy Constraints", IEEE TNNLS 2021, algorithm 3. Published thresholds, on the norms of updates: 0.4 and 1.6. Their
optional test of a cut by the angles within its sides (gamma) is left out.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from disue.models import State, flatten, subtract
from disue.objective import PLAIN, LocalObjective
from strategies.clustering.estimators import bipartition
from strategies.clustering.similarity import cosines
from strategies.methods.clustered import ClusteredStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate


class CFL(ClusteredStrategy):
    """Recursive bipartition.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    eps1 : float (default: 0.4)
        A cluster is at rest if the norm of its mean update is below.
    eps2 : float (default: 1.6)
        Its clients still pull if the largest norm of an update is above.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_last", "_origin")

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        eps1: float = 0.4,
        eps2: float = 1.6,
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, objective)
        self.eps1 = eps1
        self.eps2 = eps2
        self._last: dict[str, Tensor] = {}
        self._origin: State = {}

    def common(self) -> State:
        """Return the one model there is until the first cut, and then the one that was cut."""
        return self._origin or self.universal

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the clusters so far, with those cut that are at rest and still pulled."""
        sizes = {update.name: update.num_examples for update in updates}
        self._last |= {u.name: flatten(list(subtract(u.state, u.start).values())).double() for u in updates}
        labels = dict(self.clusters)
        for name in sizes.keys() - labels.keys():
            labels[name] = self._nearest(name)
        for label in sorted(set(labels.values())):
            members = sorted(name for name in labels if labels[name] == label)
            if self._should_split([name for name in members if name in sizes], sizes):
                other = max(labels.values()) + 1
                labels |= dict.fromkeys(self._second_half(members), other)
                self._origin = self._origin or self.universal
        return labels

    def _nearest(self, name: str) -> int:
        """Return the cluster whose members' updates are most like this client's, on the mean; 0 at first."""
        cosines: dict[int, list[float]] = {}
        for other, label in self.clusters.items():
            cosine = torch.cosine_similarity(self._last[name], self._last[other], dim=0)
            cosines.setdefault(label, []).append(float(cosine))
        return max(cosines, key=lambda label: sum(cosines[label]) / len(cosines[label]), default=0)

    def _should_split(self, sampled: list[str], sizes: dict[str, int]) -> bool:
        if len(sampled) < 2:
            return False
        deltas = torch.stack([self._last[name] for name in sampled])
        weights = torch.tensor([float(sizes[name]) for name in sampled], dtype=torch.float64)
        mean = (weights / weights.sum()) @ deltas
        return bool(mean.norm() < self.eps1 and deltas.norm(dim=1).max() > self.eps2)

    def _second_half(self, members: list[str]) -> list[str]:
        """Return one side of the cut across which the largest cosine is least."""
        sides = bipartition(cosines([self._last[name] for name in members]).numpy())
        return [name for name, side in zip(members, sides, strict=True) if side == 1]
