"""How features vary within strata, as it travels: the triangle of a covariance of 128 features at most."""

from functools import lru_cache

import torch
from torch import Tensor

from disue.seeding import torch_rng

MOST_FEATURES = 128
"""Of more features, as many projections are looked at."""


def looked_at(features: Tensor) -> Tensor:
    """Return the features that covariances are of, (..., at most 128): themselves, or a projection of more of them.

    The projection is the same for all: orthonormal, and drawn once for each number of features. Distances between many
    points are about kept by it (Johnson and Lindenstrauss 1984).
    """
    size = features.shape[-1]
    return features if size <= MOST_FEATURES else features @ _projection(size)


@lru_cache(maxsize=4)
def _projection(size: int) -> Tensor:
    drawn = torch.randn(size, MOST_FEATURES, generator=torch_rng("projection", size))
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis


def covariance_within(features: Tensor, strata: Tensor, means: Tensor) -> Tensor:
    """Return the pooled covariance of features around the means of their strata, as a `triangle`.

    Parameters
    ----------
    features : (examples, features) tensor
    strata : (examples,) int64 tensor
    means : (strata, features) tensor
    """
    off = looked_at(features - means[strata])
    return triangle(off.T @ off / max(len(off), 1))


def triangle(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix, row by row, (n (n + 1) / 2,)."""
    rows, columns = torch.triu_indices(*matrix.shape)
    values: Tensor = matrix[rows, columns]
    return values


def from_triangle(values: Tensor) -> Tensor:
    """Return the symmetric matrix of a `triangle`."""
    size = int((2 * len(values)) ** 0.5)
    rows, columns = torch.triu_indices(size, size)
    matrix = values.new_zeros(size, size)
    matrix[rows, columns] = values
    matrix[columns, rows] = values
    return matrix


def triangle_size(num_features: int) -> int:
    """Return how many numbers the covariance of so many features has on its way."""
    size = min(num_features, MOST_FEATURES)
    return size * (size + 1) // 2
