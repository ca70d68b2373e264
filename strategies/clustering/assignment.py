"""Who belongs together: the step of clustered methods that says it, for DisUE and for the methods that train apart."""

from collections.abc import Mapping, Sequence
from logging import WARNING
from typing import ClassVar, Protocol

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import Tensor

from disue.errors import ConfigError
from disue.models import State
from strategies.clustering.estimators import Clusterer, nearest_centres
from strategies.clustering.landmarks import cluster_landmarks, doubts, embedding
from strategies.clustering.matching import match_clusters
from strategies.clustering.similarity import SignatureBook, SignatureKind
from strategies.rounds.registry import ClientRegistry
from strategies.updates import ClientUpdate

FloatArray = NDArray[np.float64]


NEWCOMERS = 0.25
"""Share of clients that were not there at the last clustering, above which all are clustered anew."""


class ClusterAssigner(Protocol):
    """What a strategy asks.

    Attributes
    ----------
    description : str
        The description of their data that clients must give; empty: none.
    stateful : tuple of str
        See `FederatedStrategy`.
    """

    stateful: ClassVar[tuple[str, ...]]
    description: str

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the round's metrics should say of the last grouping."""

    @property
    def book(self) -> SignatureBook | None:
        """What clients are compared by, where they are."""

    def candidates(self, experts: Mapping[int, State]) -> Sequence[State]:
        """Return the models that clients choose from, given the experts so far; most groupings have none."""

    def group(self, updates: Sequence[ClientUpdate], descriptions: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the cluster of every client that has one so far; cluster 2 stays cluster 2."""


class BySignature:
    """Clients are clustered by their last known signatures, those included who were not sampled this round.

    Parameters
    ----------
    name : str
        The signature's name; a client is asked for it if it is not made from updates.
    kind : SignatureKind
    clusterer : Clusterer
    memory : float (default: 0.5)
        See `SignatureBook`.
    random_state : int (default: 0)
        Seed of the choice of landmarks, where there are more clients than are compared with each other.
    """

    stateful: ClassVar[tuple[str, ...]] = ("book", "_clusters", "_clustered", "_doubted")

    def __init__(
        self, name: str, kind: SignatureKind, clusterer: Clusterer, memory: float = 0.5, random_state: int = 0
    ) -> None:
        self.description = "" if kind.from_update else name
        self.kind = kind
        self.clusterer = clusterer
        self.book = SignatureBook(kind, memory)
        self.random_state = random_state
        self.metrics: dict[str, float] = {}
        self._clusters: dict[str, int] = {}
        self._clustered: set[str] = set()
        self._doubted = False

    def candidates(self, experts: Mapping[int, State]) -> Sequence[State]:
        """Return none."""
        return ()

    def group(self, updates: Sequence[ClientUpdate], descriptions: Mapping[str, Tensor]) -> dict[str, int]:
        """Cluster all clients whose signature is known, and name the clusters after those of the last round.

        Where no known signature changed, nobody is moved: newcomers join the cluster whose centre is nearest, until
        they are a quarter of all.
        """
        self.metrics = {}
        changed, names = self._take_in(updates, descriptions), self.book.names
        if not changed and self._clusters.keys() >= set(names):
            return dict(self._clusters)
        embedded = embedding(self.kind, self.book.vectors(names), self.random_state)
        newcomers = sum(name not in self._clustered for name in names)
        if changed or newcomers > NEWCOMERS * len(names):
            labels, agreement = cluster_landmarks(self.clusterer, embedded)
            self._clusters = match_clusters(self._clusters, dict(zip(names, map(int, labels), strict=True)))
            self._clustered = set(names)
            if embedded.landmarks is not None:
                self._tell(len(embedded.landmarks), embedded.projection_error, agreement)
        else:
            self._clusters |= nearest_clusters(dict(zip(names, embedded.points, strict=True)), self._clusters)
        return dict(self._clusters)

    def _tell(self, landmarks: int, projection_error: float, agreement: float) -> None:
        """Keep how good a clustering by landmarks was, and say once that it is doubtful."""
        self.metrics = {
            "landmarks": landmarks,
            "projection_error": projection_error,
            "landmark_agreement": agreement,
        }
        found = doubts(projection_error, agreement)
        if found and not self._doubted:
            log(WARNING, "clusters of all from %s landmarks are doubtful: %s", landmarks, "; ".join(found))
            self._doubted = True

    def _take_in(self, updates: Sequence[ClientUpdate], descriptions: Mapping[str, Tensor]) -> bool:
        """Enter the signatures, and return whether that of a known client changed."""
        if self.kind.from_update:
            for update in updates:
                self.book.enter(update.name, self.kind.from_update(update))
            return True
        changes = [self.book.replace(name, description) for name, description in descriptions.items()]
        return any(changes)


def nearest_clusters(points: Mapping[str, FloatArray], clusters: Mapping[str, int]) -> dict[str, int]:
    """Return, for every point whose client has no cluster, the cluster whose centre is nearest."""
    newcomers = [name for name in points if name not in clusters]
    if not newcomers:
        return {}
    known, labels = np.stack([points[name] for name in clusters]), np.array(list(clusters.values()))
    found = nearest_centres(np.stack([points[name] for name in newcomers]), known, labels)
    return dict(zip(newcomers, map(int, found), strict=True))


class ByChoice:
    """Every client chooses, among the clusters' models, the one with the lowest loss on its training data.

    Ghosh et al., "An Efficient Framework for Clustered Federated Learning" (IFCA), NeurIPS 2020, algorithm 1.

    Parameters
    ----------
    models : list of State
        What the clusters start from; they must differ, or all clients choose the first.
    """

    stateful: ClassVar[tuple[str, ...]] = ("models", "_clusters")
    description = ""
    book = None
    metrics: Mapping[str, float] = {}

    def __init__(self, models: Sequence[State]) -> None:
        self.models = list(models)
        self._clusters: dict[str, int] = {}

    def candidates(self, experts: Mapping[int, State]) -> Sequence[State]:
        """Return a model per cluster: its expert, or what it started from while nobody chose it."""
        for number, expert in experts.items():
            self.models[number] = expert
        return self.models

    def group(self, updates: Sequence[ClientUpdate], descriptions: Mapping[str, Tensor]) -> dict[str, int]:
        """Return every client's last choice."""
        self._clusters |= {update.name: update.choice for update in updates if update.choice is not None}
        return dict(self._clusters)


class Planted:
    """The planted groups, which no real server knows.

    Parameters
    ----------
    roster : ClientRegistry
        Knows the group of each client.

    Raises
    ------
    ConfigError
        In a scenario that plants no groups.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_groups",)
    description = ""
    book = None
    metrics: Mapping[str, float] = {}

    def __init__(self, roster: ClientRegistry) -> None:
        self.roster = roster
        self._groups: dict[str, int] = {}
        self.group([], {})

    def candidates(self, experts: Mapping[int, State]) -> Sequence[State]:
        """Return none."""
        return ()

    def group(self, updates: Sequence[ClientUpdate], descriptions: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the planted group of every client that is or was connected."""
        self._groups |= {client.name: client.group for client in self.roster.clients}
        if min(self._groups.values(), default=0) < 0:
            raise ConfigError("the oracle needs planted groups and some clients know none")
        return dict(self._groups)
