"""What clients told in an earlier round, in the feature space of this one.

Clients tell of their data in the features of the universal expert that opened the round, and that changes from round to
round. The server has a proxy set, of which it knows the features before and after: the affine map from the former to
the latter, by ridge regression, moves means and covariances along. What the map leaves over is added to covariances.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from disue.covariance import from_triangle, triangle
from disue.signature import Signature

RIDGE = 1e-3
"""In mean squares of the features."""


@dataclass(frozen=True)
class Move:
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
        ridge = RIDGE * float(before.double().square().mean()) * len(x) + 1e-12
        matrix = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        rest = y - x @ matrix
        return cls(matrix, target - centre @ matrix, rest.T @ rest / len(rest))

    def __call__(self, told: Signature) -> Signature:
        """Return what a client told before as it would tell it now."""
        moved = (told.prototypes.double() @ self.matrix + self.offset).float()
        points = torch.where((told.label_counts > 0).unsqueeze(1), moved, 0.0)
        if told.covariance is None:
            return replace(told, prototypes=points)
        before = from_triangle(told.covariance.double())
        covariance = self.matrix.T @ before @ self.matrix + self.left_over
        return replace(told, prototypes=points, covariance=triangle(covariance).float())
