"""Class prototypes of clients, as evidence on the server: how near a sample lies to what each client calls a class.

Nearest-class-mean classification (Mensink et al. 2013; prototypical networks, Snell et al. 2017) with the prototypes of
many clients, of which each knows a part of the classes and may know them in another form.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Multiple, Settings
from disue.prototypes import spread

FLAT = 1e-8
"""Of samples whose features vary by less than this share of their mean square, a space tells nothing."""
SMALLEST = 1e-30
"""A smaller variance is none: in single precision the squares are lost."""


class PrototypeSettings(Settings):
    """Clients' prototypes."""

    prototype_limit: Multiple = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="a client's prototype of a class does not count, in disue and ccvr, if it lies farther from what "
        "others call that class than so many times the median distance; 0: all count",
    )


def believed_counts(counts: Sequence[Tensor], points: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Return label counts, (classes,) each, less those of prototypes that lie far from what others call that class.

    Of each class, the distances to the median point of all clients' prototypes are compared with their own median. What
    is farther than ``limit`` times that does not count. With fewer than three prototypes of a class none can be told
    from the others, and all count.

    Parameters
    ----------
    counts : list of (classes,) tensor
    points : list of (classes, features) tensor
        Class prototypes, all under the same model.
    limit : float
        At least 1, so that at least half of the prototypes of a class count.
    """
    believed, where = torch.stack(list(counts)), torch.stack(list(points))
    for label in range(believed.shape[1]):
        holders = (believed[:, label] > 0).nonzero().flatten()
        if len(holders) > 2:
            own = where[holders, label]
            distances = (own - own.quantile(0.5, dim=0)).norm(dim=1)
            believed[holders[distances > limit * distances.quantile(0.5)], label] = 0.0
    return list(believed)


def coverage(samples: Tensor, label_counts: Tensor, points: Tensor) -> float:
    """Return how much of what classes are told apart by is in some samples, 0 to 1.

    It is the variance of the samples' features over that of the class means, each weighted by its examples, and at most
    1. Of samples that are drawn like the clients' examples it is 1: their variance is that of the class means and that
    within classes (law of total variance). Samples of another kind fall together in the features that the clients'
    classes are told apart by.

    Parameters
    ----------
    samples : (samples, features) tensor
        Under the model of the class means.
    label_counts : (clusters, classes) tensor
    points : (clusters, classes, features) tensor
        The class means of each cluster.
    """
    between = spread(label_counts, points)
    return min(1.0, float(samples.var(dim=0, correction=0).sum()) / max(between, 1e-12))


def in_common_units(distances: Sequence[Tensor], spaces: Sequence[Tensor]) -> Tensor:
    """Return distances that can be compared across feature spaces, (experts, samples, classes).

    They are divided by how far the samples spread in each space, and then by one number for all, so that the smallest
    distance of a sample is one on the mean. In a space where all samples fall together nothing is near anything: its
    distances are infinite, if another space can tell samples apart.

    Parameters
    ----------
    distances : list of (samples, classes) tensor
        Of each expert, squared.
    spaces : list of (samples, features) tensor
        The same samples in the space of each expert; spaces may differ in their dimension.
    """
    spreads = [space.var(dim=0, correction=0).sum() for space in spaces]
    telling = [
        bool(spread > max(FLAT * float(space.square().sum(dim=1).mean()), SMALLEST)) and not bool(own.isinf().all())
        for own, spread, space in zip(distances, spreads, spaces, strict=True)
    ]
    if any(telling):
        relative = [
            own / spread if tells else torch.full_like(own, torch.inf)
            for own, spread, tells in zip(distances, spreads, telling, strict=True)
        ]
    else:
        relative = [own / spread.clamp(min=1e-12) for own, spread in zip(distances, spreads, strict=True)]
    together = torch.stack(relative)
    return together / together.amin(dim=(0, 2)).mean().clamp(min=1e-12)


def prototype_vote(distances: Tensor) -> Tensor:
    """Return logits, (samples, classes): minus the distance to the nearest prototype of each class, whoever has it.

    A class of which there is no prototype at all counts as far away as the farthest. ``distances``: as
    `in_common_units` returns them.
    """
    nearest = distances.amin(dim=0)
    farthest = nearest.masked_fill(nearest.isinf(), 0.0).max()
    return -nearest.clamp(max=farthest)
