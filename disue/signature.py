"""What a client tells of its data with every update, besides the update."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from disue.fields import LARGEST_FEATURE, MOST_EXAMPLES, Arrays

FEWEST_COUNTED = 1e-3
"""Sum of label counts; fewer are none. Noisy ones need not be whole."""


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
        is not finite. A message must keep to the ranges of its fields, too.
    """

    label_counts: Annotated[
        Tensor,
        Arrays(
            "weight of its prototypes, and part of the label shares that stand for its cluster's; scaled down with "
            "`num-examples` where that counts for less than it says",
            record="signature",
            low=0.0,
            high=MOST_EXAMPLES,
            shape="(classes,), together up to `num-examples`",
        ),
    ]
    prototypes: Annotated[
        Tensor,
        Arrays(
            "one more point that proxy samples are compared with; `prototype-limit` leaves out what lies far from the "
            "others'",
            record="signature",
            high=LARGEST_FEATURE,
            shape="(classes, features)",
        ),
    ]

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
        if float(counts.sum()) < FEWEST_COUNTED:
            raise ValueError("the signature counts no example")
