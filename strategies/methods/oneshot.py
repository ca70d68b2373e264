"""Methods that cluster the clients once, by their updates, and then train the clusters apart."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from disue.config import Settings
from disue.models import State, flatten, subtract
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.estimators import Clusterer, DecomposedCosines
from strategies.clustering.landmarks import cluster_landmarks, embedding
from strategies.clustering.similarity import SignatureKind
from strategies.methods.base import METHODS, MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.methods.declarations import Uses
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import ClientUpdate


def direction(update: ClientUpdate) -> Tensor:
    """Return the whole update, relative to the client's start, as a vector of unit length."""
    return F.normalize(flatten(list(subtract(update.state, update.start).values())).double(), dim=0)


@stored
@dataclass(frozen=True)
class OneShotState(MethodState):
    """What a method knows that clusters once.

    Attributes
    ----------
    means : (clusters, parameters) tensor or None
        The mean directions of the clusters' updates; None: the clustering is still to come.
    origin : State
        The model whose updates were clustered; empty: none were.
    labels : mapping of client to cluster
        The cluster that each client was first given.
    """

    means: Tensor | None = None
    origin: State = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)


class OneShotMethod(ClusteredMethod[OneShotState]):
    """FedAvg for some rounds, then one clustering of the updates; whoever comes later joins the nearest cluster.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    warm_up : int
        Rounds of FedAvg before the round whose updates are clustered.
    """

    state_type = OneShotState

    def __init__(
        self, main: str, warm_up: int, objective: LocalObjective = PLAIN, aggregator: Aggregator | None = None
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.warm_up = warm_up

    @abstractmethod
    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Return a label, from 0 without gaps, per row of ``directions``: (clients, parameters), of unit length."""

    def common(self, state: OneShotState) -> State:
        """Return the one model there is until the clustering, and then the one whose updates were clustered.

        So the updates of late clients have the same start as those that they are compared with.
        """
        return state.origin or state.universals[self.main]

    def assign(self, state: OneShotState, updates: Sequence[ClientUpdate], round: Round) -> Step[OneShotState]:
        """Return one cluster until the warm-up is over, and the same clusters ever after."""
        if round.number <= self.warm_up:
            return Step(replace(state, clusters={**state.clusters, **dict.fromkeys((u.name for u in updates), 0)}))
        directions = torch.stack([direction(update) for update in updates])
        if state.means is None:
            labels = torch.tensor(list(self.cluster(directions)))
            means = [directions[labels == label].mean(dim=0) for label in range(int(labels.max()) + 1)]
            joined = F.normalize(torch.stack(means), dim=1)
            state = replace(state, means=joined, origin=state.universals[self.main])
        else:
            labels = (directions @ state.means.T).argmax(dim=1)
        # A client keeps the cluster it was first given; those of the warm-up are given theirs when they come back.
        found = {u.name: label for u, label in zip(updates, labels.tolist(), strict=True)}
        found |= state.labels
        return Step(replace(state, clusters=found, labels=found))


class FLHCSettings(Settings):
    """Method `flhc`."""

    warm_up_rounds: int = Field(3, ge=0, le=10**6, description="rounds of FedAvg before flhc clusters")


@METHODS.register("flhc", FLHCSettings)
class FLHC(OneShotMethod):
    """One hierarchical clustering of the updates after a warm-up, then separate training.

    Briggs, Fan and Andras, "Federated learning with hierarchical clustering of local updates to improve training on
    non-IID data", IJCNN 2020, algorithm 1. The paper's distance threshold depends on the data; here the number of
    clusters is chosen like everywhere else (see `strategies.clustering.estimators`).

    Parameters
    ----------
    main, warm_up, objective, aggregator
        See `OneShotMethod`.
    clusterer : Clusterer
        The hierarchical clusterer.
    random_state : int (default: 0)
        Seed of the choice of landmarks, where there are more clients than are compared with each other.
    """

    def __init__(
        self,
        main: str,
        warm_up: int,
        clusterer: Clusterer,
        random_state: int = 0,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, warm_up, objective, aggregator)
        self.clusterer = clusterer
        self.random_state = random_state

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        clusterer, warm_up = parts.agglomerative(), FLHCSettings.of(parts.config).warm_up_rounds
        return cls(parts.main, warm_up, clusterer, parts.random_state, parts.objective(), parts.aggregator)

    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Cluster the updates themselves."""
        labels, _ = cluster_landmarks(self.clusterer, embedding(SignatureKind(), list(directions), self.random_state))
        return [int(label) for label in labels]


@METHODS.register("fedgroup")
class FedGroup(OneShotMethod):
    """Clusters by the euclidean distance of decomposed cosine similarity (EDC), at a cold start.

    Duan et al., "FedGroup: Efficient Federated Learning via Decomposed Similarity-Based Clustering", ISPA 2021,
    section III: see `strategies.clustering.estimators.DecomposedCosines`.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    num_clusters : int
        Number of groups, and of singular directions.
    random_state : int (default: 0)
        Seed of k-means.
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
        super().__init__(main, 0, objective, aggregator)
        self.num_clusters = num_clusters
        self.random_state = random_state

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.main, parts.num_clusters, parts.random_state, parts.objective(), parts.aggregator)

    def cluster(self, directions: Tensor) -> Sequence[int]:
        """Cluster the updates' cosines to their leading singular directions."""
        clusterer = DecomposedCosines(min(self.num_clusters, len(directions)), self.random_state)
        return [int(label) for label in clusterer.fit_predict(directions.numpy())]
