"""CFL: a cluster whose training has come to rest, while its clients still pull, is cut in two.

Sattler, Müller and Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization Under
Privacy Constraints", IEEE TNNLS 2021, algorithm 3. Published thresholds, on the norms of updates: 0.4 and 1.6. Their
optional test of a cut by the angles within its sides (gamma) is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Settings
from disue.models import State, flatten, subtract
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.estimators import bipartition
from strategies.clustering.similarity import cosines
from strategies.methods.base import METHODS, MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import ClientUpdate


class CFLSettings(Settings):
    """Method `cfl`."""

    cfl_eps1: float = Field(
        0.4, ge=1e-9, le=1e9, description="cfl cuts a cluster whose mean update is shorter than this"
    )
    cfl_eps2: float = Field(1.6, ge=1e-9, le=1e9, description="... and one of whose updates is longer than this")


@stored
@dataclass(frozen=True)
class CFLState(MethodState):
    """What CFL knows.

    Attributes
    ----------
    last : mapping of client to (parameters,) tensor
        Its last update.
    origin : State
        The model that was cut first; empty: none was.
    """

    last: Mapping[str, Tensor] = field(default_factory=dict)
    origin: State = field(default_factory=dict)


@METHODS.register("cfl", CFLSettings)
class CFL(ClusteredMethod[CFLState]):
    """Recursive bipartition.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    eps1 : float (default: 0.4)
        A cluster is at rest if the norm of its mean update is below.
    eps2 : float (default: 1.6)
        Its clients still pull if the largest norm of an update is above.
    """

    state_type = CFLState

    def __init__(
        self,
        main: str,
        eps1: float = 0.4,
        eps2: float = 1.6,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.eps1 = eps1
        self.eps2 = eps2

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        settings = CFLSettings.of(parts.config)
        return cls(parts.main, settings.cfl_eps1, settings.cfl_eps2, parts.objective(), parts.aggregator)

    def common(self, state: CFLState) -> State:
        """Return the one model there is until the first cut, and then the one that was cut."""
        return state.origin or state.universals[self.main]

    def assign(self, state: CFLState, updates: Sequence[ClientUpdate], round: Round) -> Step[CFLState]:
        """Return the clusters so far, with those cut that are at rest and still pulled."""
        sizes = {update.name: update.num_examples for update in updates}
        fresh = {u.name: flatten(list(subtract(u.state, u.start).values())).double() for u in updates}
        last, origin, labels = {**state.last, **fresh}, state.origin, dict(state.clusters)
        for name in [name for name in sizes if name not in labels]:
            labels[name] = _nearest(name, last, state.clusters)
        for label in sorted(set(labels.values())):
            members = sorted(name for name in labels if labels[name] == label)
            if self._should_split([name for name in members if name in sizes], sizes, last):
                other = max(labels.values()) + 1
                labels |= dict.fromkeys(_second_half(members, last), other)
                origin = origin or state.universals[self.main]
        return Step(replace(state, clusters=labels, last=last, origin=origin))

    def _should_split(self, sampled: list[str], sizes: Mapping[str, int], last: Mapping[str, Tensor]) -> bool:
        if len(sampled) < 2:
            return False
        deltas = torch.stack([last[name] for name in sampled])
        weights = torch.tensor([float(sizes[name]) for name in sampled], dtype=torch.float64)
        mean = (weights / weights.sum()) @ deltas
        return bool(mean.norm() < self.eps1 and deltas.norm(dim=1).max() > self.eps2)


def _nearest(name: str, last: Mapping[str, Tensor], clusters: Mapping[str, int]) -> int:
    """Return the cluster whose members' updates are most like this client's, on the mean; 0 at first."""
    found: dict[int, list[float]] = {}
    for other, label in clusters.items():
        found.setdefault(label, []).append(float(torch.cosine_similarity(last[name], last[other], dim=0)))
    return max(found, key=lambda label: sum(found[label]) / len(found[label]), default=0)


def _second_half(members: list[str], last: Mapping[str, Tensor]) -> list[str]:
    """Return one side of the cut across which the largest cosine is least."""
    sides = bipartition(cosines([last[name] for name in members]).numpy())
    return [name for name, side in zip(members, sides, strict=True) if side == 1]
