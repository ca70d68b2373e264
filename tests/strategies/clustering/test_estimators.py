import warnings

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, silhouette_score

from disue.errors import ConfigError
from strategies.clustering.estimators import CLUSTERERS, AtLeast, Clusterer, bipartition, merge_small

NUMBERED = ("kmeans", "agglomerative", "spectral", "bipartition", "edc")


def make_clusterer(name: str, num_clusters: int, random_state: int) -> Clusterer:
    return CLUSTERERS[name](num_clusters, random_state)


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize("true_number", [2, 3, 5])
@pytest.mark.parametrize("given_number", ["given", "chosen"])
def test_finds_separated_blobs(name: str, true_number: int, given_number: str) -> None:
    points, groups = make_blobs(24, n_features=8, centers=true_number, cluster_std=0.5, random_state=1)
    clusterer = make_clusterer(name, true_number if given_number == "given" else 0, random_state=0)
    assert adjusted_rand_score(groups, clusterer.fit_predict(points)) == 1.0


@pytest.mark.parametrize("name", [*NUMBERED, "single"])
@pytest.mark.parametrize("seed", range(10))
def test_one_cloud_is_one_cluster(name: str, seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((20, 40))
    assert set(make_clusterer(name, 0, random_state=0).fit_predict(points)) == {0}


def test_the_silhouette_of_the_choice_is_scikit_learns() -> None:
    points, _ = make_blobs(20, n_features=4, centers=3, cluster_std=0.7, random_state=0)
    clusterer = make_clusterer("agglomerative", 0, random_state=0)
    labels = clusterer.fit_predict(points)
    assert clusterer.silhouette_ == pytest.approx(silhouette_score(points, labels))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
@pytest.mark.parametrize("points", [np.zeros((1, 1)), np.ones((2, 3)), np.ones((6, 2)), np.arange(3.0)[:, None]])
def test_few_or_equal_clients_are_one_cluster(name: str, points: np.ndarray) -> None:
    assert set(make_clusterer(name, 0, random_state=0).fit_predict(points)) == {0}


@pytest.mark.parametrize("name", NUMBERED)
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_more_clusters_than_clients_is_a_client_each(name: str, clients: int) -> None:
    labels = make_clusterer(name, 5, random_state=0).fit_predict(np.eye(clients))
    assert len(set(labels)) == clients


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
def test_as_many_features_as_clients_give_no_warning(name: str) -> None:
    """What an embedding of few clients looks like; scikit-learn may take it for an affinity matrix."""
    points, groups = make_blobs(12, n_features=12, centers=2, cluster_std=0.3, random_state=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = make_clusterer(name, 0, 0).fit_predict(points)
    assert name == "single" or adjusted_rand_score(groups, labels) == 1.0


def test_the_same_seed_gives_the_same_labels() -> None:
    points = np.random.default_rng(0).standard_normal((30, 5))
    first, second = (make_clusterer("kmeans", 4, random_state=7).fit_predict(points) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_unknown_clusterer_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"clusterer: 'kmean' does not exist \(did you mean 'kmeans'\?\); choose from"
    ):
        make_clusterer("kmean", 0, random_state=0)


def test_hdbscan_finds_its_own_number_and_noise_joins_the_nearest_cluster() -> None:
    points, groups = make_blobs(24, n_features=4, centers=3, cluster_std=0.4, random_state=2)
    centres = np.stack([points[groups == g].mean(axis=0) for g in range(3)])
    stray = centres[1] + 0.3 * (centres[0] - centres[1])  # far from all, nearest to the blob of group 1
    labels = make_clusterer("hdbscan", 0, 0).fit_predict(np.vstack([points, stray]))
    assert adjusted_rand_score(groups, labels[:-1]) == 1.0
    assert labels[-1] == labels[:-1][groups == 1][0]
    assert np.bincount(labels).min() > 1


def test_hdbscan_of_nothing_but_noise_is_one_cluster() -> None:
    assert set(make_clusterer("hdbscan", 0, 0).fit_predict(np.eye(8))) == {0}


def test_hdbscan_takes_no_number() -> None:
    with pytest.raises(ConfigError, match="num-clusters: got 3; clusterer 'hdbscan' finds its own number, use 0"):
        make_clusterer("hdbscan", 3, 0)


def test_single_is_one_cluster_whatever_it_is_given() -> None:
    assert set(make_clusterer("single", 4, 0).fit_predict(np.eye(5))) == {0}


@pytest.mark.parametrize("seed", range(8))
def test_bipartition_cuts_where_the_largest_cosine_across_is_least(seed: int) -> None:
    """Against all cuts of nine clients, one by one."""
    points = np.random.default_rng(seed).standard_normal((9, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosines = unit @ unit.T

    def across(labels: np.ndarray) -> float:
        return float(cosines[np.ix_(labels == 0, labels == 1)].max())

    cuts = [np.array([(number >> i) & 1 for i in range(9)]) for number in range(1, 2**8)]
    assert across(bipartition(cosines)) == pytest.approx(min(map(across, cuts)))


def test_recursive_bipartition_moves_no_client_of_another_cluster() -> None:
    """Indices within a cluster are not indices within the federation (a known bug of public code)."""
    points, groups = make_blobs([5, 3, 4], n_features=6, cluster_std=0.2, random_state=4)
    order = np.random.default_rng(0).permutation(12)
    two, three = (make_clusterer("bipartition", number, 0).fit_predict(points[order]) for number in (2, 3))
    assert adjusted_rand_score(groups[order], three) == 1.0
    moved = two != three
    assert len(set(two[moved])) == 1  # one cluster was cut, and nobody else is touched
    assert set(three[moved]) == {2}


def test_clusters_that_are_too_small_join_their_nearest_neighbours() -> None:
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = np.vstack([centres[[0, 0, 0, 1, 1, 1, 2]] + np.random.default_rng(1).normal(0, 0.1, (7, 2)), [[9.0, 4.0]]])
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 3])

    assert merge_small(points, labels, 1).tolist() == labels.tolist()
    assert merge_small(points, labels, 2).tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert set(merge_small(points, labels, 5)) == {1}
    assert set(merge_small(points, labels, 99)) == {1}


def test_one_odd_client_does_not_cost_a_cluster() -> None:
    points, groups = make_blobs(12, n_features=4, centers=3, cluster_std=0.3, random_state=6)
    odd = 3.0 * points[groups == 1].mean(axis=0) - 2.0 * points.mean(axis=0)
    plain = make_clusterer("agglomerative", 3, 0).fit_predict(np.vstack([points, odd]))
    assert adjusted_rand_score(groups, plain[:-1]) < 1.0  # it takes one of the three, and two groups are one
    labels = AtLeast(CLUSTERERS["agglomerative"], 3, 2).fit_predict(np.vstack([points, odd]))
    assert adjusted_rand_score(groups, labels[:-1]) == 1.0
    assert labels[-1] == labels[:-1][groups == 1][0]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_is_smaller_than_the_least(size: int, seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((20, 3))
    labels = AtLeast(CLUSTERERS["agglomerative"], min(8, 20 // size), size).fit_predict(points)
    assert np.unique(labels, return_counts=True)[1].min() >= size


@pytest.mark.parametrize("name", sorted(set(CLUSTERERS) - {"single"}))
@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
@pytest.mark.parametrize("far", [1.0, 10.0, 1e3])
def test_one_odd_client_does_not_hide_the_structure_among_the_others(name: str, far: float) -> None:
    """It alone against everybody else would have the best silhouette of all."""
    rng = np.random.default_rng(3)
    centres = np.eye(5)[:3]
    points = np.concatenate([centre + rng.normal(scale=0.05, size=(4, 5)) for centre in centres])
    odd = far * np.eye(5)[4]
    labels = AtLeast(CLUSTERERS[name], 0, 2).fit_predict(np.vstack([points, odd]))
    assert adjusted_rand_score(np.repeat(np.arange(3), 4), labels[:-1]) == 1.0
    assert labels[-1] in labels[:-1]
