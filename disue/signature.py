"""What a client tells of its data with every update, besides the update."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from disue.covariance import triangle_size
from disue.fields import LARGEST_COVARIANCE, LARGEST_FEATURE, MOST_EXAMPLES, Arrays

FEWEST_COUNTED = 1e-3
"""Sum of label counts; fewer are none. Noisy ones need not be whole."""


@dataclass(frozen=True)
class SignatureParts:
    """What of a signature is asked for.

    Attributes
    ----------
    num_strata : int
        Of the counts and prototypes; 0: nothing is asked for.
    covariance : bool
    """

    num_strata: int = 0
    covariance: bool = False

    def numbers(self, num_features: int) -> int:
        """Return how many numbers that is, of so many features."""
        if not self.num_strata:
            return 0
        return self.num_strata * (1 + num_features) + (triangle_size(num_features) if self.covariance else 0)


NOTHING = SignatureParts()


@dataclass(frozen=True)
class Signature:
    """Label counts and class prototypes of one client, and how its features vary around the latter.

    A prototype is the mean feature vector of the client's examples of one class, under the universal expert that
    opened the round, and zeros where it has none. It is what a proxy sample is compared with, in units of the
    covariance within classes.

    Attributes
    ----------
    label_counts : (classes,) float32 tensor
        Training examples per class; with ``share-label-counts=false`` one where there are any.
    prototypes : (classes, features) float32 tensor
    covariance : (numbers,) float32 tensor or None
        See `disue.covariance.covariance_within`; None: it was not asked for.

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
    covariance: Annotated[
        Tensor | None,
        Arrays(
            "part of the mean, weighted by examples, in whose units proxy samples are compared with prototypes; its "
            "trace counts up to `max-fit` times the median of the others'",
            record="signature",
            high=LARGEST_COVARIANCE,
            shape="the upper triangle of (features, features), of at most 128",
        ),
    ] = None

    def __post_init__(self) -> None:
        counts, shape = self.label_counts, self.prototypes.shape
        tensors = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        fits = counts.ndim == 1 and len(shape) == 2 and len(counts) == shape[0]
        if fits and self.covariance is not None:
            fits = self.covariance.shape == (triangle_size(shape[1]),)
        if not fits:
            shapes = [tuple(tensor.shape) for tensor in tensors.values()]
            raise ValueError(f"the signature's shapes {shapes} do not fit")
        if not all(tensor.dtype == torch.float32 for tensor in tensors.values()):
            types = [str(tensor.dtype) for tensor in tensors.values()]
            raise ValueError(f"the signature's types {types} are not float32")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()) or bool((counts < 0).any()):
            raise ValueError("the signature has values that are negative or not finite")
        if float(counts.sum()) < FEWEST_COUNTED:
            raise ValueError("the signature counts no example")
