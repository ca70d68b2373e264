"""What clients told of features, in another feature space than that in which they told it.

Clients tell of their data in the features of the universal expert that opened the round, and that changes from round to
round. The server has a proxy set, of which it knows the features before and after: the affine map from the former to
the latter, by ridge regression, moves means, covariances and axes along. What the map leaves over is added to
covariances, and makes axes longer.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from disue.covariance import MOST_FEATURES, from_triangle, looked_at, triangle
from disue.fields import LARGEST_COVARIANCE, LARGEST_FEATURE
from disue.signature import Signature

RIDGE = 1e-3
"""In mean variances of the features."""


@dataclass(frozen=True)
class Affine:
    """An affine map between feature spaces.

    Attributes
    ----------
    matrix : (features before, features after) tensor
    offset : (features after,) tensor
    left_over : (features after, features after) tensor
        The covariance of what the map does not explain.
    """

    matrix: Tensor
    offset: Tensor
    left_over: Tensor

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Self:
        """Return the best map for samples, of which these are the features; both (samples, features)."""
        x, y = before.double(), after.double()
        centre, target = x.mean(dim=0), y.mean(dim=0)
        x, y = x - centre, y - target
        ridge = RIDGE * float(x.square().mean()) * len(x) + 1e-12
        matrix = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        rest = y - x @ matrix
        return cls(matrix, target - centre @ matrix, rest.T @ rest / len(rest))


@dataclass(frozen=True)
class Move:
    """From one feature space to another.

    Attributes
    ----------
    features : Affine
    looked_at : Affine
        The same for the features that `disue.covariance.looked_at` gives: those that one covariance for all strata is
        of.
    """

    features: Affine
    looked_at: Affine

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Self:
        """Return the best move for samples, of which these are the features; both (samples, features)."""
        whole = Affine.between(before, after)
        few = max(before.shape[1], after.shape[1]) <= MOST_FEATURES
        return cls(whole, whole if few else Affine.between(looked_at(before), looked_at(after)))

    def __call__(self, told: Signature) -> Signature:
        """Return what a client told in the space before as it would tell it in the space after."""
        there = told.label_counts > 0
        moved = told.prototypes.double() @ self.features.matrix + self.features.offset
        moved = moved.clamp(-LARGEST_FEATURE, LARGEST_FEATURE).float()
        points = torch.where(there.unsqueeze(1), moved, 0.0)
        if told.covariance is None:
            return replace(told, prototypes=points)
        if told.covariance.ndim == 1:
            own = self.looked_at
            before = from_triangle(told.covariance.double())
            covariance = triangle(own.matrix.T @ before @ own.matrix + own.left_over)
        else:
            axes = told.covariance.double() @ self.features.matrix
            squared = axes.square().sum(dim=(1, 2), keepdim=True)
            longer = (1.0 + self.features.left_over.trace() / squared.clamp(min=1e-30)).sqrt()
            covariance = torch.where(squared > 0.0, axes * longer, 0.0)
        covariance = covariance.clamp(-LARGEST_COVARIANCE, LARGEST_COVARIANCE)
        return replace(told, prototypes=points, covariance=covariance.float())
