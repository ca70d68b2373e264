"""FeSEM: k-means over the clients' models; a client belongs to the centre its model is nearest to.

Long et al., "Multi-Center Federated Learning: Clients Clustering for Better Personalization", World Wide Web 2023,
algorithm 1.
"""

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from disue.models import State, flatten
from disue.objective import PLAIN, LocalObjective
from strategies.methods.clustered import ClusteredStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate


class FeSEM(ClusteredStrategy):
    """Clustered federated learning by stochastic expectation maximisation.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    num_clusters : int
        Number of centres.
    random_state : int (default: 0)
        Seed of the k-means that finds the first centres.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        num_clusters: int,
        objective: LocalObjective = PLAIN,
        random_state: int = 0,
    ) -> None:
        super().__init__(roster, participation, objective)
        self.num_clusters = num_clusters
        self.random_state = random_state

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """E-step: give each sampled client the nearest centre (eq. 6); the others keep theirs."""
        models = torch.stack([_vector(update.state) for update in updates])
        if self.experts:
            numbers = sorted(self.experts)
            centres = torch.stack([_vector(self.experts[number]) for number in numbers])
            labels = [numbers[i] for i in torch.cdist(models, centres).argmin(dim=1).tolist()]
        else:
            kmeans = KMeans(min(self.num_clusters, len(updates)), n_init=10, random_state=self.random_state)
            labels = kmeans.fit_predict(models.numpy()).tolist()
        return self.clusters | {update.name: label for update, label in zip(updates, labels, strict=True)}


def _vector(state: State) -> Tensor:
    return flatten(list(state.values())).double()
