"""What a client tells of its data, beside an update or when it is asked for its features."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from torch import Tensor

from disue.config.privacy import PrivacySettings
from disue.covariance import full_size, num_axes, triangle_size
from disue.fields import LARGEST_COVARIANCE, LARGEST_FEATURE, MOST_EXAMPLES, Arrays
from disue.models import State, num_features, num_parameters

FEWEST_COUNTED = 1e-3
"""Sum of label counts; fewer are none. Noisy ones need not be whole."""
CovarianceOf = Literal["", "all", "each", "axes"]
"""Empty: there is none. ``all``: one for all strata together (`disue.covariance.covariance_within`). ``each``: one for
each stratum (`disue.covariance.covariances_of_strata`). ``axes``: the longest axes of that of each stratum
(`disue.covariance.axes_of_strata`), as many as there is room for (`disue.covariance.num_axes`), or as ``all``."""


@dataclass(frozen=True)
class SignatureParts:
    """What of a signature is asked for.

    Attributes
    ----------
    num_strata : int
        Of the counts and prototypes; 0: nothing is asked for.
    covariance : str
        See `CovarianceOf`.
    """

    num_strata: int = 0
    covariance: CovarianceOf = ""

    def covariance_shape(self, model: State) -> tuple[int, ...]:
        """Return the shape of the covariance of a model's features; empty: there is none."""
        size = num_features(model)
        if not self.num_strata or not self.covariance:
            return ()
        if self.covariance == "axes" and (count := num_axes(self.num_strata, size, num_parameters(model))):
            return self.num_strata, count, size
        return (self.num_strata, full_size(size)) if self.covariance == "each" else (triangle_size(size),)

    def numbers(self, model: State) -> int:
        """Return how many numbers that is, of a model's features."""
        if not self.num_strata:
            return 0
        shape = self.covariance_shape(model)
        return self.num_strata * (1 + num_features(model)) + (math.prod(shape) if shape else 0)


NOTHING = SignatureParts()


def told_beside_updates(config: PrivacySettings) -> CovarianceOf:
    """Return which covariance clients tell with their updates, where a method asks for one.

    Axes cannot be added up, as ``privacy=secure`` needs it, and a stratum with few examples has few of them, so that
    they tell label counts.
    """
    return "axes" if config.privacy == "plain" and config.share_label_counts else "all"


@dataclass(frozen=True)
class Signature:
    """Label counts and class prototypes of one client, and how its features vary around the latter.

    A prototype is the mean feature vector of the client's examples of one class, and zeros where it has none. Beside an
    update it is under the universal expert that opened the round: it is what a proxy sample is compared with, in units
    of the covariance within classes. In answer to a question for features it is under the model that was sent.

    Attributes
    ----------
    label_counts : (classes,) float32 tensor
        Training examples per class; with ``share-label-counts=false`` one where there are any.
    prototypes : (classes, features) float32 tensor
    covariance : (numbers,), (classes, numbers) or (classes, axes, features) float32 tensor or None
        For all classes together, for each, or the axes of each; see `CovarianceOf`. None: it was not asked for.

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
            "`num-examples` where that counts for less than it says; in `features` and `early`, where there is none, "
            "weight of the client in each class, and all of it counts up to `max-weight` times the others' median",
            record="signature",
            low=0.0,
            high=MOST_EXAMPLES,
            shape="(classes,), together up to `num-examples` where that is in the message",
        ),
    ]
    prototypes: Annotated[
        Tensor,
        Arrays(
            "part of the means from which the gate and the evidence are made, and around which features of its class "
            "are drawn to calibrate heads (not in `early`, where it is no longer than 1); each counts up to `max-fit` "
            "times the median length of the others' longest, and `prototype-limit` leaves out what lies far from the "
            "others' (in `early` those of its cluster)",
            record="signature",
            high=LARGEST_FEATURE,
            shape="(classes, features)",
        ),
    ]
    covariance: Annotated[
        Tensor | None,
        Arrays(
            "part of the mean, weighted by examples, in whose units proxy samples are compared with prototypes, and of "
            "that with which features of its class are drawn (not in `early`); its trace, of several their mean over "
            "the examples and then the largest, counts up to `max-fit` times the median of the others'",
            record="signature",
            high=LARGEST_COVARIANCE,
            shape="(classes, axes, features), from 1 to 4 axes; with `share-label-counts=false`, or where none fits, "
            "the upper triangle of (features, features), of at most 128; in `features` one of all for each class, in "
            "`early` one of all, of trace 1 at most",
        ),
    ] = None

    def __post_init__(self) -> None:
        counts, shape = self.label_counts, self.prototypes.shape
        tensors = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        fits = counts.ndim == 1 and len(shape) == 2 and len(counts) == shape[0]
        if fits and self.covariance is not None:
            told = self.covariance.shape
            size = full_size(shape[1])
            fits = told in ((triangle_size(shape[1]),), (size,), (shape[0], size))
            fits |= len(told) == 3 and (told[0], told[2]) == tuple(shape)
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

    def counts_with_prototypes(self) -> Tensor:
        """Return the label counts, (classes,), of those classes that it has a prototype of, which is not all zeros."""
        return self.label_counts * (self.prototypes != 0).any(dim=1)

    def counting(self, most: float) -> Self:
        """Return it with label counts that are no more than so many together."""
        total = float(self.label_counts.sum())
        return self if total <= most else replace(self, label_counts=self.label_counts * (most / total))
