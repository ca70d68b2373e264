"""How features vary within strata, as it travels: the triangle of a covariance, or its longest principal axes.

One triangle for all strata together is of 128 features at most; what there is of each stratum is of all features.
"""

from functools import lru_cache

import torch
from torch import Tensor

from disue.seeding import torch_rng

MOST_AXES = 4
"""Principal axes of each stratum. Four of a client with a few examples of each class did as well as all."""
LEAST_NUMBERS = 2560
"""So many numbers, 10 KB, are told of any model; of a larger one a tenth of what it has."""
MOST_FEATURES = 128
"""Of more features, as many projections are looked at in a covariance for all strata together."""


def looked_at(features: Tensor) -> Tensor:
    """Return the features that covariances are of, (..., at most 128): themselves, or a projection of more of them."""
    return projected(features, MOST_FEATURES)


def projected(features: Tensor, most: int) -> Tensor:
    """Return features, (..., at most ``most``): themselves, or a projection of more of them.

    The projection is the same for all: orthonormal, and drawn once for each number of features. Distances between many
    points are about kept by it (Johnson and Lindenstrauss 1984).
    """
    size = features.shape[-1]
    return features if size <= most else features @ _projection(size, most)


@lru_cache(maxsize=4)
def _projection(size: int, most: int) -> Tensor:
    drawn = torch.randn(size, most, generator=torch_rng("projection", size))
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


def covariances_of_strata(features: Tensor, strata: Tensor, means: Tensor) -> Tensor:
    """Return the unbiased covariance of the features of each stratum, a `triangle` each, (strata, n (n + 1) / 2).

    Zeros for a stratum with fewer than two examples. Parameters as in `covariance_within`.
    """
    off = features - means[strata]
    own = [off[strata == stratum] for stratum in range(len(means))]
    return torch.stack([triangle(rows.T @ rows / max(len(rows) - 1, 1)) for rows in own])


def axes_of_strata(features: Tensor, strata: Tensor, means: Tensor, count: int) -> Tensor:
    """Return the longest principal axes of the features of each stratum, (strata, count, features).

    An axis is as long as the standard deviation along it (with the divisor n): A^T A is the covariance, but for what
    varies in other directions. Zeros where there are fewer. Parameters as in `covariance_within`.
    """
    off = (features - means[strata]).double()
    axes = torch.zeros(len(means), count, features.shape[1])
    for stratum in strata.unique().tolist():
        rows = off[strata == stratum]
        _, lengths, directions = torch.linalg.svd(rows / len(rows) ** 0.5, full_matrices=False)
        longest = (lengths.unsqueeze(1) * directions)[:count]
        axes[stratum, : len(longest)] = longest.float()
    return axes


def num_axes(num_strata: int, num_features: int, num_parameters: int) -> int:
    """Return how many principal axes of each stratum are told, 0 to 4: as many as a tenth of the model has room for.

    Where it has no room for one of each, one covariance is told for all strata together.

    Examples
    --------
    >>> num_axes(10, 64, 20_000), num_axes(10, 64, 500_000), num_axes(1000, 64, 500_000)
    (4, 4, 0)
    """
    numbers = max(LEAST_NUMBERS, num_parameters // 10)
    return min(numbers // (num_strata * num_features), MOST_AXES, num_features)


def triangle(matrices: Tensor) -> Tensor:
    """Return the upper triangles of symmetric matrices, (..., n, n), each row by row, (..., n (n + 1) / 2)."""
    rows, columns = torch.triu_indices(*matrices.shape[-2:])
    values: Tensor = matrices[..., rows, columns]
    return values


def from_triangle(values: Tensor) -> Tensor:
    """Return the symmetric matrices, (..., n, n), of which these are the triangles (`triangle`)."""
    size = int((2 * values.shape[-1]) ** 0.5)
    rows, columns = torch.triu_indices(size, size)
    matrices = values.new_zeros(*values.shape[:-1], size, size)
    matrices[..., rows, columns] = values
    matrices[..., columns, rows] = values
    return matrices


def triangle_size(num_features: int) -> int:
    """Return how many numbers the covariance for all strata together of so many features has on its way."""
    return full_size(min(num_features, MOST_FEATURES))


def full_size(num_features: int) -> int:
    """Return how many numbers the `triangle` of a covariance of so many features has."""
    return num_features * (num_features + 1) // 2
