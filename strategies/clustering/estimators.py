"""Estimators that group clients: scikit-learn estimators behind config names, and the choice of how many clusters."""

import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.distance import cdist, pdist, squareform
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin, silhouette_samples
from sklearn.preprocessing import normalize

from disue.config import Settings
from disue.errors import ConfigError
from disue.registry import Registry

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MIN_CLUSTER_SIZE = 2


class ClustererSettings(Settings):
    """Clusters."""

    clusterer: str = Field("agglomerative", description="clustering algorithm")
    num_clusters: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of clusters; 0: chosen from the signatures (ifca, fesem, fedgroup: as many as num-groups)",
    )
    min_cluster_size: int = Field(
        2,
        ge=1,
        le=10**6,
        description="fewest clients in a cluster of disue by signature; a smaller one joins the nearest",
    )


class Clusterer(Protocol):
    """What scikit-learn's clusterers have in common."""

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""


class MakeClusterer(Protocol):
    """Makes a clusterer."""

    def __call__(self, num_clusters: int, random_state: int, min_cluster_size: int = 1, /) -> Clusterer:
        """Return a clusterer; what it does with smaller clusters is its own, and they may be left."""


CLUSTERERS: Registry[Callable[..., Clusterer]] = Registry("clusterer")
"""Name -> `MakeClusterer`, for which 0 clusters means: choose the number; one that has keys takes their ``settings``,
too."""

MakeNumbered = Callable[[int, int], Clusterer]
"""``make(num_clusters, random_state)``, for one cluster at least."""


class FixedNumClusters:
    """A clusterer with a given number of clusters, or as many as there are clients where these are fewer.

    Parameters
    ----------
    make : callable
        ``make(num_clusters, random_state)`` gives a clusterer.
    num_clusters : int
    random_state : int (default: 0)
        Seed of the clusterer.
    """

    def __init__(self, make: MakeNumbered, num_clusters: int, random_state: int = 0) -> None:
        self.make = make
        self.num_clusters = num_clusters
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        number = min(self.num_clusters, len(X))
        return _labels(self.make, number, self.random_state, X)


class ChosenNumClusters:
    """A clusterer that chooses its number of clusters, one included.

    The number with the best mean silhouette (Rousseeuw 1987) is taken. Where even the best one is below
    ``min_silhouette`` there is "no substantial structure" (Kaufman & Rousseeuw 1990, table 4): all clients
    are one cluster. Clients in clusters that are too small count as zero, as one alone does, and the others'
    silhouettes are taken without them. Otherwise one client that is like no other would make the best cluster of all,
    and hide the structure among the others.

    Parameters
    ----------
    make : callable
        ``make(num_clusters, random_state)`` gives a clusterer.
    max_clusters : int (default: 20)
        Largest number tried; never more than half of the clients.
    min_silhouette : float (default: 0.25)
        A best split below it is noise.
    random_state : int (default: 0)
        Seed of the clusterer.
    min_cluster_size : int (default: 1)

    Attributes
    ----------
    silhouette_ : float
        Mean silhouette of the best split into two or more clusters; -1 where there is none.
    """

    def __init__(
        self,
        make: MakeNumbered,
        max_clusters: int = 20,
        min_silhouette: float = 0.25,
        random_state: int = 0,
        min_cluster_size: int = 1,
    ) -> None:
        self.make = make
        self.min_cluster_size = min_cluster_size
        self.max_clusters = max_clusters
        self.min_silhouette = min_silhouette
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        self.silhouette_ = -1.0
        best = np.zeros(len(X), dtype=np.int64)
        for number in range(2, min(self.max_clusters, len(X) // 2) + 1):
            labels = _labels(self.make, number, self.random_state, X)
            silhouette = self._silhouette(X, labels)
            if silhouette > self.silhouette_:
                self.silhouette_, best = silhouette, labels
        return best if self.silhouette_ >= self.min_silhouette else np.zeros(len(X), dtype=np.int64)

    def _silhouette(self, X: FloatArray, labels: IntArray) -> float:
        """Return the mean silhouette of all clients; -1 where fewer than two clusters are large enough."""
        found, sizes = np.unique(labels, return_counts=True)
        large = found[sizes >= self.min_cluster_size]
        if len(large) < 2:
            return -1.0
        looked_at = np.isin(labels, large)
        return float(silhouette_samples(X[looked_at], labels[looked_at]).sum() / len(X))


def _labels(make: MakeNumbered, number: int, random_state: int, X: FloatArray) -> IntArray:
    if number == 1 or number >= len(X):
        return np.arange(len(X)) % number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # k-means on fewer distinct points than clusters
        return make(number, random_state).fit_predict(X)


def numbered(make: MakeNumbered) -> MakeClusterer:
    """Give a clusterer that must be told its number of clusters the choice of it, for the number 0."""

    def make_or_choose(num_clusters: int, random_state: int, min_cluster_size: int = 1, /) -> Clusterer:
        if num_clusters:
            return FixedNumClusters(make, num_clusters, random_state)
        return ChosenNumClusters(make, random_state=random_state, min_cluster_size=min_cluster_size)

    return make_or_choose


@CLUSTERERS.register("kmeans")
@numbered
def _kmeans(num_clusters: int, random_state: int) -> Clusterer:
    estimator: Clusterer = KMeans(n_clusters=num_clusters, n_init=10, random_state=random_state)
    return estimator


@CLUSTERERS.register("agglomerative")
@numbered
def _agglomerative(num_clusters: int, _random_state: int) -> Clusterer:
    estimator: Clusterer = AgglomerativeClustering(n_clusters=num_clusters, linkage="average", metric="euclidean")
    return estimator


@CLUSTERERS.register("spectral")
@numbered
class Spectral:
    """Spectral clustering with a Gaussian kernel as wide as the median distance between clients."""

    def __init__(self, num_clusters: int, random_state: int) -> None:
        self.num_clusters = num_clusters
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        squared = pdist(X, "sqeuclidean")
        kernel = np.exp(-squareform(squared) / max(float(np.median(squared)), 1e-12))
        estimator = SpectralClustering(self.num_clusters, affinity="precomputed", random_state=self.random_state)
        labels: IntArray = estimator.fit_predict(kernel)
        return labels


@CLUSTERERS.register("bipartition")
@numbered
class Bipartition:
    """Recursive bipartition: again and again, the cluster whose two sides are least alike is cut.

    A cluster is cut so that the largest cosine across the cut is least (single linkage finds that cut; Sattler et al.
    2021, algorithm 1), and of all clusters the one for which it is lowest is cut first.
    """

    def __init__(self, num_clusters: int, _random_state: int) -> None:
        self.num_clusters = num_clusters

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        cosines = normalize(X) @ normalize(X).T
        labels = np.zeros(len(X), dtype=np.int64)
        cuts = {0: _cut(cosines, np.arange(len(X)))}
        for new in range(1, self.num_clusters):
            label = min(cuts, key=lambda label: cuts[label][0])
            _, first, second = cuts[label]
            labels[second] = new
            cuts[label], cuts[new] = _cut(cosines, first), _cut(cosines, second)
        return labels


def _cut(cosines: FloatArray, members: IntArray) -> tuple[float, IntArray, IntArray]:
    """Return the largest cosine across the best cut of these clients, and its two sides."""
    if len(members) < 2:
        return float("inf"), members, members[:0]
    sides = bipartition(cosines[np.ix_(members, members)])
    first, second = members[sides == 0], members[sides == 1]
    return float(cosines[np.ix_(first, second)].max()), first, second


def bipartition(cosines: FloatArray) -> IntArray:
    """Return the side, 0 or 1, of each client at the cut across which the largest cosine is least.

    ``cosines``: (clients, clients); the result is (clients,).
    Its indices count within the clients that are given, not within the federation.
    """
    distances = np.clip(1.0 - cosines, 0.0, None)
    np.fill_diagonal(distances, 0.0)
    sides: IntArray = AgglomerativeClustering(2, metric="precomputed", linkage="single").fit_predict(distances)
    return sides


@CLUSTERERS.register("edc")
@numbered
class DecomposedCosines:
    """k-means on each client's cosines to the leading singular directions of all clients, one per cluster.

    The euclidean distance of decomposed cosine similarity, EDC (FedGroup, Duan et al. 2021, section III).
    """

    def __init__(self, num_clusters: int, random_state: int) -> None:
        self.num_clusters = num_clusters
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        points = decomposed_cosines(X, self.num_clusters)
        labels: IntArray = KMeans(self.num_clusters, n_init=10, random_state=self.random_state).fit_predict(points)
        return labels


def decomposed_cosines(X: FloatArray, count: int) -> FloatArray:
    """Return each row's cosines to the ``count`` leading right singular vectors of ``X``, (clients, count)."""
    unit = normalize(X)
    _, _, axes = np.linalg.svd(unit, full_matrices=False)
    cosines: FloatArray = unit @ axes[:count].T
    return cosines


@CLUSTERERS.register("hdbscan")
class Hdbscan:
    """scikit-learn's HDBSCAN; it finds its own number, and noise joins the nearest cluster.

    Without any cluster all clients are one.

    Raises
    ------
    ConfigError
        If it is given a number of clusters.
    """

    def __init__(self, num_clusters: int, _random_state: int, _min_cluster_size: int = 1, /) -> None:
        if num_clusters:
            raise ConfigError(f"num-clusters: got {num_clusters}; clusterer 'hdbscan' finds its own number, use 0")

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        if len(X) < 2 * MIN_CLUSTER_SIZE:
            return np.zeros(len(X), dtype=np.int64)
        labels: IntArray = HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, copy=True).fit_predict(X).astype(np.int64)
        if labels.max() < 0:
            return np.zeros(len(X), dtype=np.int64)
        noise = labels < 0
        if noise.any():
            labels[noise] = nearest_centres(X[noise], X[~noise], labels[~noise])
        return labels


def nearest_centres(points: FloatArray, X: FloatArray, labels: IntArray) -> IntArray:
    """Return, per point, the label of the cluster of ``X`` whose centre is nearest.

    ``points``: (points, features); ``X``: (clients, features); ``labels``: (clients,).
    """
    found = np.unique(labels)
    centres = np.stack([X[labels == label].mean(axis=0) for label in found])
    nearest: IntArray = found[pairwise_distances_argmin(points, centres)]
    return nearest


@CLUSTERERS.register("single")
class Single:
    """All clients are one cluster: DisUE without clusters is FedAvg."""

    def __init__(self, _num_clusters: int, _random_state: int, _min_cluster_size: int = 1, /) -> None:
        pass

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return zeros."""
        return np.zeros(len(X), dtype=np.int64)


class AtLeast:
    """A clusterer whose clusters have a smallest size: smaller ones are merged into their nearest neighbours.

    As long as a cluster is too small, the smallest one joins the cluster whose centre is nearest to its own. Where the
    number of clusters is given, more are asked for until that many are left: one odd client does not cost a cluster.

    Parameters
    ----------
    make : MakeClusterer
    num_clusters : int
        0: the clusterer chooses.
    min_cluster_size : int
    random_state : int (default: 0)
    """

    def __init__(self, make: MakeClusterer, num_clusters: int, min_cluster_size: int, random_state: int = 0) -> None:
        self.make = make
        self.num_clusters = num_clusters
        self.min_cluster_size = min_cluster_size
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        labels = self._merged(X, self.num_clusters)
        wanted = min(self.num_clusters, len(X) // self.min_cluster_size)
        for number in range(self.num_clusters + 1, len(X)):
            if len(np.unique(labels)) >= wanted:
                break
            more = self._merged(X, number)
            if len(np.unique(more)) > len(np.unique(labels)):
                labels = more
        return labels

    def _merged(self, X: FloatArray, number: int) -> IntArray:
        clusterer = self.make(number, self.random_state, self.min_cluster_size)
        return merge_small(X, clusterer.fit_predict(X), self.min_cluster_size)


def merge_small(X: FloatArray, labels: IntArray, min_cluster_size: int) -> IntArray:
    """Return the labels with clusters below the size merged, smallest first, into the one with the nearest centre."""
    merged = np.array(labels)
    while True:
        found, sizes = np.unique(merged, return_counts=True)
        if len(found) == 1 or sizes.min() >= min_cluster_size:
            return merged
        centres = np.stack([X[merged == label].mean(axis=0) for label in found])
        smallest = int(sizes.argmin())
        distances = cdist(centres[smallest][None], centres)[0]
        distances[smallest] = np.inf
        merged[merged == found[smallest]] = found[distances.argmin()]
