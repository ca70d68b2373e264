"""The client's signature: what it tells about its data, besides its update."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signature:
    """Label counts and class prototypes of one client.

    Attributes
    ----------
    label_counts : (classes,) float tensor
        Training examples per class.
    prototypes : (classes, features) float tensor
        Mean feature vector per class under the universal expert that opened the round; zeros where
        the client has no example of the class.

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or a value is not finite.
    """

    label_counts: Tensor
    prototypes: Tensor

    def __post_init__(self) -> None:
        counts, prototypes = self.label_counts, self.prototypes
        if counts.ndim != 1 or prototypes.ndim != 2 or len(counts) != len(prototypes):
            raise ValueError(f"the signature's shapes {tuple(counts.shape)} and {tuple(prototypes.shape)} do not fit")
        if not bool(torch.isfinite(prototypes).all() and torch.isfinite(counts).all() and (counts >= 0).all()):
            raise ValueError("the signature has values that are negative or not finite")
