"""Who belongs together: the step of clustered methods that says it, for DisUE and for the methods that train apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import Tensor

from disue.errors import ConfigError
from disue.models import State
from strategies.clustering.estimators import Clusterer, nearest_centres
from strategies.clustering.landmarks import cluster_landmarks, doubts, embedding
from strategies.clustering.matching import match_clusters
from strategies.clustering.similarity import SignatureBook, SignatureKind, running_means
from strategies.stored import stored
from strategies.updates import ClientSketch, ClientUpdate

FloatArray = NDArray[np.float64]

NEWCOMERS = 0.25
"""Share of clients that were not there at the last clustering, above which all are clustered anew."""


Single = ClientUpdate | ClientSketch
"""What the server sees of one client."""
M = TypeVar("M")


@dataclass(frozen=True)
class Assigned(Generic[M]):
    """Who is in which cluster, what the assigner remembers, and what the round's metrics should say of it."""

    clusters: dict[str, int]
    memory: M
    metrics: Mapping[str, float]


class ClusterAssigner(Protocol[M]):
    """Says who belongs together. It remembers nothing itself: its memory goes in and comes out.

    Attributes
    ----------
    description : str
        The description of their data that clients must give; empty: none.
    """

    description: str

    def begin(self) -> M:
        """Return the memory before the first round."""

    def candidates(self, memory: M, experts: Mapping[int, State]) -> Sequence[State]:
        """Return the models that clients choose from, given the experts so far; most assigners have none."""

    def assign(
        self,
        memory: M,
        updates: Sequence[Single],
        descriptions: Mapping[str, Tensor],
        groups: Mapping[str, int],
        experts: Mapping[int, State],
    ) -> Assigned[M]:
        """Return the cluster of every client that has one so far; cluster 2 stays cluster 2.

        Parameters
        ----------
        memory : M
        updates : sequence of ClientUpdate or ClientSketch
            Of the clients that were sampled, sorted by name.
        descriptions : mapping of client to Tensor
            What clients said of their data.
        groups : mapping of client to int
            The planted groups of the clients that are there.
        experts : mapping of cluster to State
            Those with which the round began.
        """

    def book(self, memory: M) -> SignatureBook | None:
        """Return what clients are compared by, where they are."""


@stored
@dataclass(frozen=True)
class SignatureMemory:
    """What `BySignature` remembers.

    Attributes
    ----------
    vectors : mapping of client to Tensor
        The last known signatures.
    clusters : mapping of client to cluster
    clustered : frozenset of client
        Those who were there at the last clustering of all.
    doubted : bool
        Whether a doubt about the landmarks was logged.
    """

    vectors: Mapping[str, Tensor]
    clusters: Mapping[str, int]
    clustered: frozenset[str]
    doubted: bool


class BySignature:
    """Clients are clustered by their last known signatures, those included who were not sampled this round.

    Parameters
    ----------
    name : str
        The signature's name; a client is asked for it if it is not made from updates.
    kind : SignatureKind
    clusterer : Clusterer
    memory : float (default: 0.5)
        Share of the past in a client's running signature, where that is made from updates.
    random_state : int (default: 0)
        Seed of the choice of landmarks, where there are more clients than are compared with each other.
    """

    def __init__(
        self, name: str, kind: SignatureKind, clusterer: Clusterer, memory: float = 0.5, random_state: int = 0
    ) -> None:
        self.description = "" if kind.from_update else name
        self.kind = kind
        self.clusterer = clusterer
        self.memory = memory
        self.random_state = random_state

    def begin(self) -> SignatureMemory:
        """Return that nothing is known."""
        return SignatureMemory({}, {}, frozenset(), False)

    def candidates(self, memory: SignatureMemory, experts: Mapping[int, State]) -> Sequence[State]:
        """Return none."""
        return ()

    def book(self, memory: SignatureMemory) -> SignatureBook:
        """Return the last known signatures."""
        return SignatureBook(self.kind, memory.vectors)

    def assign(
        self,
        memory: SignatureMemory,
        updates: Sequence[Single],
        descriptions: Mapping[str, Tensor],
        groups: Mapping[str, int],
        experts: Mapping[int, State],
    ) -> Assigned[SignatureMemory]:
        """Cluster all clients whose signature is known, and name the clusters after those of the last round.

        Where no known signature changed, nobody is moved: newcomers join the cluster whose centre is nearest, until
        they are a quarter of all.
        """
        vectors, changed = self._renewed(memory.vectors, updates, descriptions)
        memory = replace(memory, vectors=vectors)
        book = self.book(memory)
        names = book.names
        if not changed and memory.clusters.keys() >= set(names):
            return Assigned(dict(memory.clusters), memory, {})
        embedded = embedding(self.kind, book.vectors(names), self.random_state)
        newcomers = sum(name not in memory.clustered for name in names)
        if not changed and newcomers <= NEWCOMERS * len(names):
            near = nearest_clusters(dict(zip(names, embedded.points, strict=True)), memory.clusters)
            clusters = {**memory.clusters, **near}
            return Assigned(clusters, replace(memory, clusters=clusters), {})
        labels, agreement = cluster_landmarks(self.clusterer, embedded)
        clusters = match_clusters(memory.clusters, dict(zip(names, map(int, labels), strict=True)))
        memory = replace(memory, clusters=clusters, clustered=frozenset(names))
        if embedded.landmarks is None:
            return Assigned(dict(clusters), memory, {})
        found = doubts(embedded.projection_error, agreement)
        if found and not memory.doubted:
            what = "clusters of all from %s landmarks are doubtful: %s"
            log(WARNING, what, len(embedded.landmarks), "; ".join(found))
        metrics = {
            "landmarks": len(embedded.landmarks),
            "projection_error": embedded.projection_error,
            "landmark_agreement": agreement,
        }
        return Assigned(dict(clusters), replace(memory, doubted=memory.doubted or bool(found)), metrics)

    def _renewed(
        self, known: Mapping[str, Tensor], updates: Sequence[Single], descriptions: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], bool]:
        """Return the signatures, and whether that of a known client changed."""
        if self.kind.from_update:
            fresh = {update.name: self.kind.from_update(update) for update in updates}
            return running_means(known, fresh, self.memory), True
        changed = any(name in known and not torch.equal(known[name], own) for name, own in descriptions.items())
        return {**known, **descriptions}, changed


def nearest_clusters(points: Mapping[str, FloatArray], clusters: Mapping[str, int]) -> dict[str, int]:
    """Return, for every point whose client has no cluster, the cluster whose centre is nearest."""
    newcomers = [name for name in points if name not in clusters]
    if not newcomers:
        return {}
    known, labels = np.stack([points[name] for name in clusters]), np.array(list(clusters.values()))
    found = nearest_centres(np.stack([points[name] for name in newcomers]), known, labels)
    return dict(zip(newcomers, map(int, found), strict=True))


@stored
@dataclass(frozen=True)
class ChoiceMemory:
    """What `ByChoice` remembers: the models to choose from, as they were last, and every client's last choice."""

    models: Sequence[State]
    clusters: Mapping[str, int]


class ByChoice:
    """Every client chooses, among the clusters' models, the one with the lowest loss on its training data.

    Ghosh et al., "An Efficient Framework for Clustered Federated Learning" (IFCA), NeurIPS 2020, algorithm 1.

    Parameters
    ----------
    models : list of State
        What the clusters start from; they must differ, or all clients choose the first.
    """

    description = ""

    def __init__(self, models: Sequence[State]) -> None:
        self.models = list(models)

    def begin(self) -> ChoiceMemory:
        """Return the first models, and no choice."""
        return ChoiceMemory(self.models, {})

    def candidates(self, memory: ChoiceMemory, experts: Mapping[int, State]) -> Sequence[State]:
        """Return a model per cluster: its last expert, or what it started from while nobody chose it."""
        return [experts.get(number, model) for number, model in enumerate(memory.models)]

    def assign(
        self,
        memory: ChoiceMemory,
        updates: Sequence[Single],
        descriptions: Mapping[str, Tensor],
        groups: Mapping[str, int],
        experts: Mapping[int, State],
    ) -> Assigned[ChoiceMemory]:
        """Return every client's last choice."""
        chosen = {u.name: u.choice for u in updates if isinstance(u, ClientUpdate) and u.choice is not None}
        clusters = {**memory.clusters, **chosen}
        return Assigned(dict(clusters), ChoiceMemory(self.candidates(memory, experts), clusters), {})

    def book(self, memory: ChoiceMemory) -> None:
        """Return None: clients are not compared."""


class Planted:
    """The planted groups, which no real server knows."""

    description = ""

    def begin(self) -> Mapping[str, int]:
        """Return that no client's group is known."""
        return {}

    def candidates(self, memory: Mapping[str, int], experts: Mapping[int, State]) -> Sequence[State]:
        """Return none."""
        return ()

    def assign(
        self,
        memory: Mapping[str, int],
        updates: Sequence[Single],
        descriptions: Mapping[str, Tensor],
        groups: Mapping[str, int],
        experts: Mapping[int, State],
    ) -> Assigned[Mapping[str, int]]:
        """Return the planted group of every client that is or was connected.

        Raises
        ------
        ConfigError
            If a client is in none.
        """
        known = {**memory, **groups}
        if min(known.values(), default=0) < 0:
            raise ConfigError("the oracle needs planted groups and some clients know none")
        return Assigned(dict(known), known, {})

    def book(self, memory: Mapping[str, int]) -> None:
        """Return None: clients are not compared."""
