"""More clients than are compared with each other."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from strategies.clustering.assignment import BySignature
from strategies.clustering.estimators import CLUSTERERS, AtLeast
from strategies.clustering.landmarks import MOST_COMPARED, Embedding, cluster_landmarks, doubts, embedding
from strategies.clustering.similarity import SIGNATURES, embed

COSINES = SIGNATURES["initial-prototypes"]


def grouped(clients: int, groups: int, size: int = 40, noise: float = 0.3, seed: int = 0) -> list[Tensor]:
    """Return a vector per client; client i is of group i modulo ``groups``."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, size, generator=rng)
    return [centres[i % groups] + noise * torch.randn(size, generator=rng) for i in range(clients)]


def subspaces(clients: int, groups: int) -> list[Tensor]:
    return [torch.linalg.qr(vector.view(20, 3)).Q for vector in grouped(clients, groups, size=60, noise=0.1)]


def labels_of(name: str, embedded: Embedding) -> NDArray[np.int64]:
    return cluster_landmarks(AtLeast(CLUSTERERS[name], 0, 2), embedded)[0]


@pytest.mark.parametrize("clients", [30, MOST_COMPARED])
def test_few_clients_are_all_compared_and_clustered_as_they_always_were(clients: int) -> None:
    vectors = grouped(clients, 3)
    points = embed(COSINES.gram(vectors))
    found = embedding(COSINES, vectors, random_state=1)
    assert found.landmarks is None
    assert np.array_equal(found.points, points)
    clusterer = AtLeast(CLUSTERERS["agglomerative"], 0, 2)
    labels, agreement = cluster_landmarks(clusterer, found)
    assert np.array_equal(labels, clusterer.fit_predict(points))
    assert agreement == 1.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "initial-prototypes") for name in sorted(set(CLUSTERERS) - {"single"})),
        ("agglomerative", "subspace"),
    ],
)
def test_landmarks_find_the_clusters_that_all_pairs_find(name: str, kind: str) -> None:
    vectors = (subspaces if kind == "subspace" else grouped)(150, 4)
    exact, nearly = (embedding(SIGNATURES[kind], vectors, 0, most_compared=most) for most in (150, 60))
    assert exact.landmarks is None
    assert nearly.landmarks is not None
    assert len(nearly.landmarks) == 60
    expected, found = labels_of(name, exact), labels_of(name, nearly)
    assert adjusted_rand_score(np.arange(150) % 4, expected) == 1.0
    assert adjusted_rand_score(expected, found) == 1.0


def test_the_points_of_landmarks_are_exact_and_the_others_are_nystroems() -> None:
    vectors = [F.normalize(vector, dim=0) for vector in grouped(60, 3, noise=1.0)]
    found = embedding(COSINES, vectors, 0, most_compared=20)
    stacked = torch.stack(vectors).double().numpy()
    own = stacked[found.landmarks]
    np.testing.assert_allclose(found.points @ found.points[found.landmarks].T, stacked @ own.T, atol=1e-5)
    expected = Nystroem(kernel="linear", n_components=20).fit(own).transform(stacked)
    np.testing.assert_allclose(found.points @ found.points.T, expected @ expected.T, atol=1e-4)


def test_everybody_joins_the_centre_that_is_nearest_in_the_space_of_the_signatures() -> None:
    """Though points are projections: against a loop over the unit vectors themselves."""
    vectors = [F.normalize(vector, dim=0) for vector in grouped(200, 5, size=300, noise=1.5)]
    found = embedding(COSINES, vectors, 0, most_compared=40)
    labels, _ = cluster_landmarks(CLUSTERERS["kmeans"](5, 0), found)
    assert found.landmarks is not None
    centres = [
        torch.stack([vectors[i] for i in found.landmarks if labels[i] == label]).mean(dim=0) for label in range(5)
    ]
    for i in set(range(200)) - set(found.landmarks):
        assert labels[i] == min(range(5), key=lambda label: float((vectors[i] - centres[label]).norm()))


def test_the_projection_error_is_that_of_pairs_of_others() -> None:
    vectors = grouped(40, 40, noise=0.0)
    found = embedding(COSINES, vectors, 0, most_compared=10)
    assert found.landmarks is not None
    others = sorted(set(range(40)) - set(found.landmarks))
    pairs = [(i, j) for i in others for j in others if i < j]
    missed = [
        float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) - found.points[i] @ found.points[j]
        for i, j in pairs
    ]
    assert found.projection_error == pytest.approx(np.sqrt(np.mean(np.square(missed))), rel=1e-4)


@pytest.mark.parametrize("clients", [11, 12])
def test_one_or_two_clients_more_are_no_special_case(clients: int) -> None:
    found = embedding(COSINES, grouped(clients, 2), 0, most_compared=10)
    assert found.projection_error < 0.1
    assert adjusted_rand_score(np.arange(clients) % 2, labels_of("agglomerative", found)) == 1.0


def test_alike_and_zero_signatures_are_one_cluster() -> None:
    for vectors in ([torch.ones(4)] * 30, [torch.zeros(4)] * 30):
        found = embedding(COSINES, vectors, 0, most_compared=10)
        assert np.isfinite(found.points).all()
        assert set(labels_of("agglomerative", found)) == {0}


def test_it_is_doubted_when_landmarks_do_not_span_the_signatures_or_have_the_wrong_centre() -> None:
    coarse = embedding(COSINES, grouped(300, 60, noise=0.05), 0, most_compared=8)
    fine = embedding(COSINES, grouped(300, 60, noise=0.05), 0, most_compared=150)
    assert coarse.projection_error > 0.1 > fine.projection_error
    assert "projected with an error of" in doubts(coarse.projection_error, 1.0)[0]
    assert doubts(fine.projection_error, 1.0) == []

    class Stripes:
        def fit_predict(self, X: NDArray[np.float64]) -> NDArray[np.int64]:
            return np.arange(len(X)) % 2

    _, agreement = cluster_landmarks(Stripes(), fine)
    assert agreement < 0.9
    assert "nearest to the centre of their own cluster" in doubts(0.0, agreement)[0]


class Assigning:
    """An assigner that hands on its own memory, in which so many clients are compared at most."""

    def __init__(
        self, names: Sequence[str], vectors: Sequence[Tensor], monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        monkeypatch.setattr(
            "strategies.clustering.assignment.embedding",
            lambda kind, vectors, seed: embedding(kind, vectors, seed, most),
        )
        name = "initial-prototypes"
        clusterer = AtLeast(CLUSTERERS["agglomerative"], 0, 2)
        self.assigner = BySignature(name, SIGNATURES[name], clusterer, random_state=3)
        self.last = self.assigner.assign(
            self.assigner.begin(), [], dict(zip(names, vectors, strict=True)), groups={}, experts={}
        )

    def again(self, told: dict[str, Tensor]) -> dict[str, int]:
        self.last = self.assigner.assign(self.last.memory, [], told, groups={}, experts={})
        return self.last.clusters


def test_a_large_federation_has_the_same_clusters_in_whatever_order_clients_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors, names = grouped(600, 6, noise=1.2), [f"client-{i}" for i in range(600)]
    found = Assigning(names, vectors, monkeypatch, most=120).last.clusters
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(600)
        shuffled = Assigning([names[i] for i in order], [vectors[i] for i in order], monkeypatch, most=120)
        assert shuffled.last.clusters == found


def test_a_large_federation_has_the_planted_clusters_and_tells_how_good_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vectors, names = grouped(600, 6), [f"client-{i}" for i in range(600)]
    exact = Assigning(names, vectors, monkeypatch, most=600).last
    nearly = Assigning(names, vectors, monkeypatch, most=120)
    metrics, clusters = nearly.last.metrics, nearly.last.clusters
    assert exact.metrics == {}
    assert set(metrics) == {"landmarks", "projection_error", "landmark_agreement"}
    assert metrics["landmarks"] == 120
    assert metrics["landmark_agreement"] == 1.0
    assert adjusted_rand_score([clusters[name] for name in names], np.arange(600) % 6) == 1.0
    assert adjusted_rand_score(list(clusters.values()), list(exact.clusters.values())) == 1.0
    assert nearly.again({}) == clusters
    assert nearly.last.metrics == {}  # nobody was clustered anew
    assert nearly.again({"late": vectors[2]}) == clusters | {"late": clusters["client-2"]}
    assert "doubtful" not in caplog.text


def test_a_doubtful_clustering_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    vectors, names = grouped(200, 60, noise=0.05), [f"client-{i}" for i in range(200)]
    assigning = Assigning(names, vectors, monkeypatch, most=8)
    assigning.again({"client-0": vectors[1]})
    assert assigning.last.metrics["projection_error"] > 0.1
    assert caplog.text.count("clusters of all from 8 landmarks are doubtful: signatures are projected") == 1
