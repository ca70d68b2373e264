import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, silhouette_score

from disue.errors import ConfigError
from strategies.clusterers import CLUSTERERS, make_clusterer


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
@pytest.mark.parametrize("true_number", [2, 3, 5])
@pytest.mark.parametrize("given_number", ["given", "chosen"])
def test_finds_separated_blobs(name: str, true_number: int, given_number: str) -> None:
    points, groups = make_blobs(24, n_features=8, centers=true_number, cluster_std=0.5, random_state=1)
    clusterer = make_clusterer(name, true_number if given_number == "given" else 0, random_state=0)
    assert adjusted_rand_score(groups, clusterer.fit_predict(points)) == 1.0


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
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


@pytest.mark.parametrize("name", sorted(CLUSTERERS))
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_more_clusters_than_clients_is_a_client_each(name: str, clients: int) -> None:
    labels = make_clusterer(name, 5, random_state=0).fit_predict(np.eye(clients))
    assert len(set(labels)) == clients


def test_the_same_seed_gives_the_same_labels() -> None:
    points = np.random.default_rng(0).standard_normal((30, 5))
    first, second = (make_clusterer("kmeans", 4, random_state=7).fit_predict(points) for _ in range(2))
    assert np.array_equal(first, second)


def test_an_unknown_clusterer_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"clusterer: 'kmean' does not exist \(did you mean 'kmeans'\?\); choose from"
    ):
        make_clusterer("kmean", 0, random_state=0)
