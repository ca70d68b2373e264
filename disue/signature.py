"""What a client tells of its data with every update, besides the update."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signature:
    """Label counts and class prototypes of one client.

    A prototype is the mean feature vector of the client's examples of one class, under the universal expert that
    opened the round, and zeros where it has none. It is what a proxy sample is compared with.

    Attributes
    ----------
    label_counts : (classes,) float32 tensor
        Training examples per class; with ``share-label-counts=false`` one where there are any.
    prototypes : (classes, features) float32 tensor

    Raises
    ------
    ValueError
        If the shapes do not fit each other, the type is not float32, a value is negative where it must not be, or one
        is not finite.
    """

    label_counts: Tensor
    prototypes: Tensor

    def __post_init__(self) -> None:
        counts, shape = self.label_counts, self.prototypes.shape
        if counts.ndim != 1 or len(shape) != 2 or len(counts) != shape[0]:
            shapes = [tuple(tensor.shape) for tensor in vars(self).values()]
            raise ValueError(f"the signature's shapes {shapes} do not fit")
        if not all(tensor.dtype == torch.float32 for tensor in vars(self).values()):
            types = [str(tensor.dtype) for tensor in vars(self).values()]
            raise ValueError(f"the signature's types {types} are not float32")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in vars(self).values()) or bool((counts < 0).any()):
            raise ValueError("the signature has values that are negative or not finite")
        if not bool(counts.sum() > 0):
            raise ValueError("the signature counts no example")
