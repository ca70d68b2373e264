"""The joint discriminant against scikit-learn's, and against loops over the normal densities of SciPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from disue.discriminant import (
    LEAST_EVIDENCE,
    SHRINKAGE,
    Discriminant,
    Normal,
    gate_weights,
    mahalanobis,
    positive,
    shrunk,
    stratum_evidence,
)

EXPERTS, STRATA, FEATURES, SAMPLES = 3, 4, 5, 11


def some_covariance(seed: int) -> torch.Tensor:
    root = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / FEATURES


@pytest.fixture
def known() -> Discriminant:
    """Three clusters with four classes, of which two clusters lack one; that of class 3 nobody has."""
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([[5.0, 0.0, 2.0, 0.0], [1.0, 1.0, 9.0, 0.0], [3.0, 3.0, 0.0, 0.0]])
    means = 2.0 * torch.randn(EXPERTS, STRATA, FEATURES, generator=g) * (counts > 0).unsqueeze(-1)
    return Discriminant(counts, means, shrunk(some_covariance(1)))


@pytest.fixture
def samples() -> torch.Tensor:
    return torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(2))


def densities(known: Discriminant, samples: torch.Tensor) -> NDArray[np.float64]:
    """One at a time, (experts, samples, strata); 0 where nobody has the class."""
    found = np.zeros((EXPERTS, SAMPLES, STRATA))
    covariance = known.covariance.double().numpy()
    for k in range(EXPERTS):
        for c in range(STRATA):
            if known.counts[k, c] > 0:
                density = multivariate_normal(known.means[k, c].double().numpy(), covariance)
                found[k, :, c] = density.pdf(samples.double().numpy())
    return found


def test_with_one_cluster_the_evidence_is_scikit_learns_posterior() -> None:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(80) % STRATA
    x = torch.randn(80, FEATURES, generator=g) @ some_covariance(4) + torch.randn(STRATA, FEATURES, generator=g)[y]
    means = torch.stack([x[y == c].mean(dim=0) for c in range(STRATA)])
    off = x - means[y]
    own = Discriminant(torch.full((1, STRATA), 20.0), means.unsqueeze(0), shrunk(off.T @ off / len(off)))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=[1 / STRATA] * STRATA)
    expected = theirs.fit(x.double().numpy(), y.numpy()).predict_proba(x.double().numpy())
    logs = own.log_densities(x)
    np.testing.assert_allclose(stratum_evidence(logs).exp().numpy(), expected, atol=1e-4)
    assert gate_weights(logs).tolist() == [[[1.0]] * 80]


@pytest.mark.parametrize("background", [True, False])
def test_the_weights_of_clusters_are_shares_of_their_densities(
    known: Discriminant, samples: torch.Tensor, background: bool
) -> None:
    expected = densities(known, samples).sum(axis=2)
    if background:
        known = Discriminant(known.counts, known.means, known.covariance, Normal.of(samples))
    found = gate_weights(known.log_densities(samples))
    assert found.shape == (EXPERTS, SAMPLES, 1)
    np.testing.assert_allclose(found[..., 0].numpy(), expected / expected.sum(axis=0), atol=1e-5)


def test_the_evidence_of_a_class_is_its_share_of_the_densities_whoever_has_it(
    known: Discriminant, samples: torch.Tensor
) -> None:
    expected = densities(known, samples).sum(axis=0)
    expected = np.log(np.maximum(expected / expected.sum(axis=1, keepdims=True), np.exp(LEAST_EVIDENCE)))
    np.testing.assert_allclose(stratum_evidence(known.log_densities(samples)).numpy(), expected, atol=1e-3)
    assert (expected[:, 3] == LEAST_EVIDENCE).all()


def test_with_a_background_densities_are_relative_to_it(known: Discriminant, samples: torch.Tensor) -> None:
    background = Normal(torch.ones(FEATURES), shrunk(some_covariance(5)))
    relative = Discriminant(known.counts, known.means, known.covariance, background).log_densities(samples)
    covariance = background.covariance.double().numpy()
    beside = multivariate_normal(np.ones(FEATURES), covariance).logpdf(samples.double().numpy())
    has = known.counts > 0
    for k, c in has.nonzero().tolist():
        plain = multivariate_normal(known.means[k, c].double().numpy(), known.covariance.double().numpy())
        expected = plain.logpdf(samples.double().numpy()) - beside
        np.testing.assert_allclose(relative[k, :, c].numpy(), expected, atol=1e-3)


def test_with_a_background_the_unit_of_a_space_says_nothing(known: Discriminant, samples: torch.Tensor) -> None:
    """Spaces of several architectures are compared: one in which all is 100 times as far apart is not less likely."""
    plain = Discriminant(known.counts, known.means, known.covariance, Normal.of(samples))
    large = Discriminant(known.counts, 100 * known.means, 1e4 * known.covariance, Normal.of(100 * samples))
    torch.testing.assert_close(large.log_densities(100 * samples), plain.log_densities(samples), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("background", [True, False])
def test_what_nobody_has_is_never_likelier_than_what_somebody_has(samples: torch.Tensor, background: bool) -> None:
    """Also where the examples of all pairs fall together, as with one of each: all samples are far from them."""
    counts = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    means = torch.zeros(2, 3, FEATURES)
    means[0, 1] = 1e3
    own = Discriminant(
        counts, means, shrunk(torch.zeros(FEATURES, FEATURES)), Normal.of(samples) if background else None
    )
    logs = own.log_densities(100.0 * samples)
    assert not bool(logs.isnan().any())
    evidence = stratum_evidence(logs)
    assert bool((evidence[:, 2] == LEAST_EVIDENCE).all())
    assert bool((evidence.max(dim=1).values > -1.0).all())
    torch.testing.assert_close(gate_weights(logs).sum(dim=0), torch.ones(SAMPLES, 1))
    only_one = Discriminant(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), means, own.covariance, own.background)
    assert gate_weights(only_one.log_densities(100.0 * samples))[0].flatten().tolist() == [1.0] * SAMPLES


def test_the_normal_of_samples_is_scipys(samples: torch.Tensor) -> None:
    found = Normal.of(samples)
    x = samples.double().numpy()
    covariance = shrunk_covariance(np.cov(x.T, bias=True), SHRINKAGE)
    np.testing.assert_allclose(found.covariance.numpy(), covariance, atol=1e-6)
    expected = multivariate_normal(x.mean(axis=0), covariance).logpdf(x) + FEATURES / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_density(samples).numpy(), expected, atol=1e-4)


def test_distances_are_mahalanobis(samples: torch.Tensor) -> None:
    covariance = shrunk(some_covariance(6))
    points = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(7))
    inverse = np.linalg.inv(covariance.double().numpy())
    off = (samples.unsqueeze(1) - points.unsqueeze(0)).double().numpy()
    expected = np.einsum("spi,ij,spj->sp", off, inverse, off)
    np.testing.assert_allclose(mahalanobis(samples, points, covariance).numpy(), expected, rtol=1e-4)


def test_a_matrix_without_its_negative_variances_is_the_nearest_that_is_a_covariance() -> None:
    """Higham 1988: by the projection of the eigenvalues; one that is a covariance stays as it is."""
    own = some_covariance(8)
    torch.testing.assert_close(positive(own), own)
    values, vectors = np.linalg.eigh((own - 0.5 * torch.eye(FEATURES)).double().numpy())
    assert values.min() < 0.0 < values.max()
    expected = sum(max(value, 0.0) * np.outer(vector, vector) for value, vector in zip(values, vectors.T, strict=True))
    np.testing.assert_allclose(positive(own - 0.5 * torch.eye(FEATURES)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), -torch.eye(3), torch.diag(torch.tensor([1e12, 0.0, -1e12]))])
def test_whatever_is_told_there_is_a_density(matrix: torch.Tensor) -> None:
    assert int(torch.linalg.cholesky_ex(shrunk(matrix).double()).info) == 0
