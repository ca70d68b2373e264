"""Grouping clients: scikit-learn estimators behind config names, and the choice of how many clusters."""

import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score

from disue.registry import Registry

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Clusterer(Protocol):
    """What scikit-learn's clusterers have in common."""

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""


CLUSTERERS: Registry[Callable[[int, int], Clusterer]] = Registry("clusterer")
"""Name -> ``make(num_clusters, random_state)``."""


@CLUSTERERS.register("kmeans")
def _kmeans(num_clusters: int, random_state: int) -> Clusterer:
    estimator: Clusterer = KMeans(n_clusters=num_clusters, n_init=10, random_state=random_state)
    return estimator


@CLUSTERERS.register("agglomerative")
def _agglomerative(num_clusters: int, _random_state: int) -> Clusterer:
    estimator: Clusterer = AgglomerativeClustering(n_clusters=num_clusters, linkage="average", metric="euclidean")
    return estimator


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

    def __init__(self, make: Callable[[int, int], Clusterer], num_clusters: int, random_state: int = 0) -> None:
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
    are one cluster.

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

    Attributes
    ----------
    silhouette_ : float
        Mean silhouette of the best split into two or more clusters; -1 where there is none.
    """

    def __init__(
        self,
        make: Callable[[int, int], Clusterer],
        max_clusters: int = 20,
        min_silhouette: float = 0.25,
        random_state: int = 0,
    ) -> None:
        self.make = make
        self.max_clusters = max_clusters
        self.min_silhouette = min_silhouette
        self.random_state = random_state

    def fit_predict(self, X: FloatArray) -> IntArray:
        """Return a label per row of ``X`` (clients, features)."""
        self.silhouette_ = -1.0
        best = np.zeros(len(X), dtype=np.int64)
        for number in range(2, min(self.max_clusters, len(X) // 2) + 1):
            labels = _labels(self.make, number, self.random_state, X)
            if len(np.unique(labels)) > 1:
                silhouette = float(silhouette_score(X, labels))
                if silhouette > self.silhouette_:
                    self.silhouette_, best = silhouette, labels
        return best if self.silhouette_ >= self.min_silhouette else np.zeros(len(X), dtype=np.int64)


def _labels(make: Callable[[int, int], Clusterer], number: int, random_state: int, X: FloatArray) -> IntArray:
    if number == 1:
        return np.zeros(len(X), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # k-means on fewer distinct points than clusters
        return make(number, random_state).fit_predict(X)


def make_clusterer(name: str, num_clusters: int, random_state: int) -> Clusterer:
    """Return the clusterer for the config values; ``num_clusters=0`` chooses the number.

    Raises
    ------
    ConfigError
        If there is no such clusterer.
    """
    make = CLUSTERERS[name]
    if num_clusters:
        return FixedNumClusters(make, num_clusters, random_state)
    return ChosenNumClusters(make, random_state=random_state)
