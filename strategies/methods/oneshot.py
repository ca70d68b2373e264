"""Methods that cluster the clients once, by their updates, and then train the clusters apart."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from disue.models import State, flatten, subtract
from disue.objective import PLAIN, LocalObjective
from strategies.clustering.estimators import Clusterer, DecomposedCosines
from strategies.clustering.landmarks import cluster_landmarks, embedding
from strategies.clustering.similarity import SignatureKind
from strategies.methods.clustered import ClusteredStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate


def direction(update: ClientUpdate) -> Tensor:
    """Return the whole update, relative to the client's start, as a vector of unit length."""
    return F.normalize(flatten(list(subtract(update.state, update.start).values())).double(), dim=0)


class OneShotStrategy(ClusteredStrategy):
    """FedAvg for some rounds, then one clustering of the updates; whoever comes later joins the nearest cluster.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    warm_up : int
        Rounds of FedAvg before the round whose updates are clustered.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_means", "_origin", "_labels")

    def __init__(
        self, roster: ClientRegistry, participation: Participation, warm_up: int, objective: LocalObjective = PLAIN
    ) -> None:
        super().__init__(roster, participation, objective)
        self.warm_up = warm_up
        self._means: Tensor | None = None
        self._origin: State = {}
        self._labels: dict[str, int] = {}

    @abstractmethod
    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Return a label, from 0 without gaps, per row of ``directions``: (clients, parameters), of unit length."""

    def common(self) -> State:
        """Return the one model there is until the clustering, and then the one whose updates were clustered.

        So the updates of late clients have the same start as those that they are compared with.
        """
        return self._origin or self.universal

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return one cluster until the warm-up is over, and the same clusters ever after."""
        if server_round <= self.warm_up:
            return self.clusters | dict.fromkeys((update.name for update in updates), 0)
        directions = torch.stack([direction(update) for update in updates])
        if self._means is None:
            labels = torch.tensor(list(self.cluster(directions)))
            means = [directions[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)]
            self._means = F.normalize(torch.stack(means), dim=1)
            self._origin = self.universal
        else:
            labels = (directions @ self._means.T).argmax(dim=1)
        # A client keeps the cluster it was first given; those of the warm-up are given theirs when they come back.
        self._labels = {u.name: label for u, label in zip(updates, labels.tolist(), strict=True)} | self._labels
        return dict(self._labels)


class FLHC(OneShotStrategy):
    """One hierarchical clustering of the updates after a warm-up, then separate training.

    Briggs, Fan and Andras, "Federated learning with hierarchical clustering of local updates to improve training on
    non-IID data", IJCNN 2020, algorithm 1. The paper's distance threshold depends on the data; here the number of
    clusters is chosen like everywhere else (see `strategies.clustering.estimators`).

    Parameters
    ----------
    roster, participation, warm_up, objective
        See `OneShotStrategy`.
    clusterer : Clusterer
        The hierarchical clusterer.
    random_state : int (default: 0)
        Seed of the choice of landmarks, where there are more clients than are compared with each other.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        warm_up: int,
        clusterer: Clusterer,
        objective: LocalObjective = PLAIN,
        random_state: int = 0,
    ) -> None:
        super().__init__(roster, participation, warm_up, objective)
        self.clusterer = clusterer
        self.random_state = random_state

    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Cluster the updates themselves."""
        labels, _ = cluster_landmarks(self.clusterer, embedding(SignatureKind(), list(directions), self.random_state))
        return [int(label) for label in labels]


class FedGroup(OneShotStrategy):
    """Clusters by the euclidean distance of decomposed cosine similarity (EDC), at a cold start.

    Duan et al., "FedGroup: Efficient Federated Learning via Decomposed Similarity-Based Clustering", ISPA 2021,
    section III: see `strategies.clustering.estimators.DecomposedCosines`.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    num_clusters : int
        Number of groups, and of singular directions.
    random_state : int (default: 0)
        Seed of k-means.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        num_clusters: int,
        objective: LocalObjective = PLAIN,
        random_state: int = 0,
    ) -> None:
        super().__init__(roster, participation, warm_up=0, objective=objective)
        self.num_clusters = num_clusters
        self.random_state = random_state

    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Cluster the updates' cosines to their leading singular directions."""
        clusterer = DecomposedCosines(min(self.num_clusters, len(directions)), self.random_state)
        return [int(label) for label in clusterer.fit_predict(directions.numpy())]
