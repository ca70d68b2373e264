"""StoCFL: clusters are merged as clients are met, and their models are held near one that all clients train.

Zeng et al., "Stochastic Clustered Federated Learning", 2023 (arXiv:2303.00897). A client is known by the gradient of
its loss at an anchor, the initial model. Each that is met for the first time is a cluster of its own; then clusters are
merged whose mean gradients have a cosine of tau at least, the most alike first. A client trains two models: the global
one, omega, and that of its cluster, theta, with lambda/2 ||theta - omega||^2 to the omega that it was sent.

The lambda of the published code is 0.05. Tau depends on the data there; it is 0.5 here by default. Two things differ: a
gradient counts by its direction alone, so that no client can outweigh the others of its cluster, and the cluster of a
client is found at the end of the round in which it is met, so that its first theta starts at omega.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from disue.config import Settings
from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.landmarks import MOST_COMPARED
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Needs, Supports
from strategies.methods.parts import Parts
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.teams import members_of, renew, teams_of
from strategies.updates import ClientUpdate, Contribution, WeightedModel


class StoCFLSettings(Settings):
    """Method `stocfl`."""

    stocfl_tau: float = Field(
        0.5, ge=-1.0, le=1.0, description="stocfl merges clusters whose mean gradients have this cosine at least"
    )
    stocfl_lambda: float = Field(
        0.05,
        ge=0.0,
        le=1e6,
        description="weight of the term that holds a cluster's model near the global one in stocfl",
    )


@METHODS.register("stocfl", StoCFLSettings)
class StoCFL(Method[MethodState]):
    """Stochastic clustered federated learning; the universal model is the global one.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    tau : float (default: 0.5)
        Cosine from which two clusters are one.
    weight : float (default: 0.05)
        Lambda; with 0 the clusters train apart, beside FedAvg.
    """

    needs = Needs(description="anchor-gradient")
    supports = Supports(uncovered="the gradient of a client's loss")

    def __init__(
        self,
        main: str,
        tau: float = 0.5,
        weight: float = 0.05,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, replace(objective, second_mu=weight), aggregator)
        self.tau = tau

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        own = StoCFLSettings.of(parts.config)
        return cls(parts.main, own.stocfl_tau, own.stocfl_lambda, parts.objective(), parts.aggregator)

    def second(self, state: MethodState, client: Client) -> State:
        """Return theta: the model of the client's cluster, or omega."""
        return self.expert(state, client) or self.universal(state, client.model)

    def assign(self, state: MethodState, updates: Sequence[ClientUpdate], round: Round) -> Step[MethodState]:
        """Return the clusters so far, with the clients that are met for the first time, merged.

        A client whose data changed is met as if for the first time.
        """
        clusters = {name: cluster for name, cluster in state.clusters.items() if name not in round.changed}
        gradients = round.descriptions
        fresh = [update.name for update in updates if update.name not in clusters]
        for first in range(0, len(fresh), MOST_COMPARED):
            unused = max(clusters.values(), default=-1) + 1
            clusters |= {name: unused + i for i, name in enumerate(fresh[first : first + MOST_COMPARED])}
            clusters = merged(clusters, gradients, self.tau)
        return Step(replace(state, clusters=clusters))

    def step(self, state: MethodState, updates: Sequence[Contribution], round: Round) -> Step[MethodState]:
        """Average omega over all clients, and theta over those of each cluster."""
        teams, before = (teams_of(clusters, round.models) for clusters in (state.clusters, round.clusters_before))
        seconds = [
            WeightedModel(update.name, update.second.state, update.num_examples)
            for update in updates
            if isinstance(update, ClientUpdate) and update.second is not None
        ]
        fresh, _ = self.aggregator.of_groups(seconds, members_of(seconds, teams))
        _, average = self.aggregator.of_groups(updates, members_of(updates, teams))
        experts, models = renew(state.experts, fresh, teams, before), {self.main: average}
        return Step(replace(state, experts=experts, universals=models), averages=models)


def merged(clusters: Mapping[str, int], gradients: Mapping[str, Tensor], tau: float) -> dict[str, int]:
    """Return clusters no two of which have mean gradients with a cosine of ``tau`` or more.

    The most alike are merged first. The larger of two gives its label to both, and of two of a size the one with the
    smaller label.

    Parameters
    ----------
    clusters : mapping of client to cluster
    gradients : mapping of client to (1, parameters) tensor
    tau : float
    """
    members: dict[int, list[str]] = {}
    for name, label in clusters.items():
        members.setdefault(label, []).append(name)
    labels = sorted(members)
    units = {name: F.normalize(gradients[name].flatten().double(), dim=0) for name in clusters}
    sums = torch.stack([torch.stack([units[name] for name in members[label]]).sum(dim=0) for label in labels])
    products = sums @ sums.T
    while len(labels) > 1:
        lengths = products.diagonal().clamp(min=1e-300).sqrt()
        cosines = (products / torch.outer(lengths, lengths)).fill_diagonal_(-torch.inf)
        i, j = divmod(int(cosines.argmax()), len(labels))
        if float(cosines[i, j]) < tau:
            break
        keep, drop = sorted((i, j), key=lambda k: (-len(members[labels[k]]), labels[k]))
        products[keep] += products[drop]
        products[:, keep] += products[:, drop]
        left = [k for k in range(len(labels)) if k != drop]
        products = products[left][:, left]
        members[labels[keep]] += members.pop(labels.pop(drop))
    label_of = {name: label for label, names in members.items() for name in names}
    return {name: label_of[name] for name in clusters}
