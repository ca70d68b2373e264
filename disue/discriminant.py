"""A joint discriminant over clusters and strata: how likely a sample is as one of each.

Linear discriminant analysis (Fisher 1936; Hastie, Tibshirani and Friedman, section 4.3), whose classes are the pairs of
a cluster and a stratum: each is a normal density around its mean features, with one covariance for all. The densities
answer two questions about a sample: which cluster it is of (the gate), and which stratum, whichever the cluster.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = 0.1
"""Share of its mean variance in a covariance: few examples tell little of directions in which they hardly vary."""
UNKNOWN = -1e37
"""Log density of a pair of which nobody told an example: a number, and less than that of any other pair."""
LEAST_EVIDENCE = -12.0
"""Log probability of a stratum; evidence against one is no stronger."""


@dataclass(frozen=True)
class Normal:
    """One normal distribution: of what samples, of any kind, are like in a feature space.

    Attributes
    ----------
    mean : (features,) tensor
    covariance : (features, features) tensor
        Positive definite.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Normal":
        """Return that of some samples' features, (samples, features)."""
        return cls(features.mean(dim=0), shrunk(features.T.cov(correction=0)))

    def log_density(self, features: Tensor) -> Tensor:
        """Return log densities up to a constant that only the number of features decides, (samples,)."""
        squared = mahalanobis(features, self.mean.unsqueeze(0), self.covariance)[:, 0]
        return -0.5 * (squared + log_volume(self.covariance))


@dataclass(frozen=True)
class Discriminant:
    """See the module.

    Attributes
    ----------
    counts : (experts, strata) tensor
        How many examples each mean is of; 0: there is none.
    means : (experts, strata, features) tensor
    covariance : (features, features) tensor
        Of features within pairs, positive definite.
    background : Normal or None
        What samples are like that are of no expert in particular. With it, densities are relative to that, and those of
        different feature spaces can be compared.
    shares : (experts,) tensor or None
        Of an expert in its cluster, where several are of one; None: each is alone.
    """

    counts: Tensor
    means: Tensor
    covariance: Tensor
    background: Normal | None = None
    shares: Tensor | None = None

    def log_densities(self, features: Tensor) -> Tensor:
        """Return log densities up to one constant, (experts, samples, strata); `UNKNOWN` where there is no mean.

        ``features``: (samples, features), in the space of the means.
        """
        experts, strata = self.counts.shape
        found = -0.5 * mahalanobis(features, self.means.flatten(end_dim=1), self.covariance)
        if self.background is not None:
            found = found - 0.5 * log_volume(self.covariance) - self.background.log_density(features).unsqueeze(1)
        if self.shares is not None:
            found = found + self.shares.log().repeat_interleave(strata)
        return found.view(-1, experts, strata).masked_fill(self.counts == 0, UNKNOWN).transpose(0, 1)


def gate_weights(log_densities: Tensor) -> Tensor:
    """Return how probable each expert's cluster is for each sample, (experts, samples, 1)."""
    return torch.softmax(log_densities.logsumexp(dim=2), dim=0).unsqueeze(-1)


def stratum_evidence(log_densities: Tensor) -> Tensor:
    """Return log probabilities of the strata, whichever the cluster, (samples, strata), at least `LEAST_EVIDENCE`."""
    return torch.log_softmax(log_densities.logsumexp(dim=0), dim=1).clamp(min=LEAST_EVIDENCE)


def mahalanobis(features: Tensor, points: Tensor, covariance: Tensor) -> Tensor:
    """Return squared distances in units of a covariance, (samples, points), float32."""
    root = torch.linalg.cholesky(covariance.double())
    whitened, centres = (torch.linalg.solve_triangular(root, x.double().T, upper=False).T for x in (features, points))
    return torch.cdist(whitened, centres).square().float()


def log_volume(covariance: Tensor) -> float:
    """Return the log determinant of a covariance."""
    return float(torch.linalg.slogdet(covariance.double()).logabsdet)


def positive(matrices: Tensor) -> Tensor:
    """Return symmetric matrices, (..., n, n), without their negative eigenvalues: no covariance has one."""
    values, vectors = torch.linalg.eigh(matrices.double())
    rest: Tensor = ((vectors * values.clamp(min=0.0).unsqueeze(-2)) @ vectors.mT).to(matrices.dtype)
    return rest


def shrunk(covariance: Tensor) -> Tensor:
    """Return a covariance with `SHRINKAGE` of its mean variance in it, positive definite."""
    own = positive(covariance)
    mean = (own.trace() / len(own)).clamp(min=1e-12)
    return (1.0 - SHRINKAGE) * own + SHRINKAGE * mean * torch.eye(len(own), dtype=own.dtype)
