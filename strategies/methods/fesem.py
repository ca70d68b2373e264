"""FeSEM: k-means over the clients' models; a client belongs to the centre its model is nearest to.

Long et al., "Multi-Center Federated Learning: Clients Clustering for Better Personalization", World Wide Web 2023,
algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from disue.models import State, flatten
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.methods.base import METHODS, MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.methods.declarations import Uses
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.updates import ClientUpdate


@METHODS.register("fesem")
class FeSEM(ClusteredMethod[MethodState]):
    """Clustered federated learning by stochastic expectation maximisation.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    num_clusters : int
        Number of centres.
    random_state : int (default: 0)
        Seed of the k-means that finds the first centres.
    """

    uses = Uses(given_number=True)

    def __init__(
        self,
        main: str,
        num_clusters: int,
        random_state: int = 0,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.num_clusters = num_clusters
        self.random_state = random_state

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.main, parts.num_clusters, parts.random_state, parts.objective(), parts.aggregator)

    def assign(self, state: MethodState, updates: Sequence[ClientUpdate], round: Round) -> Step[MethodState]:
        """E-step: give each sampled client the nearest centre (eq. 6); the others keep theirs."""
        models = torch.stack([_vector(update.state) for update in updates])
        if state.experts:
            numbers, experts = zip(*sorted(state.experts_of(self.main).items()), strict=True)
            centres = torch.stack([_vector(expert) for expert in experts])
            labels = [numbers[i] for i in torch.cdist(models, centres).argmin(dim=1).tolist()]
        else:
            kmeans = KMeans(min(self.num_clusters, len(updates)), n_init=10, random_state=self.random_state)
            labels = kmeans.fit_predict(models.numpy()).tolist()
        own = {update.name: label for update, label in zip(updates, labels, strict=True)}
        return Step(replace(state, clusters={**state.clusters, **own}))


def _vector(state: State) -> Tensor:
    return flatten(list(state.values())).double()
