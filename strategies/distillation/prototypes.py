"""Class prototypes of clients, as evidence on the server: how near a sample lies to what each client calls a class.

Nearest-class-mean classification (Mensink et al. 2013; prototypical networks, Snell et al. 2017) with the prototypes of
many clients, of which each knows a part of the classes and may know them in another form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from disue.prototypes import nearest_prototypes, spread
from disue.signature import Signature
from strategies.stored import stored

FLAT = 1e-8
"""Of samples whose features vary by less than this share of their mean square, a space tells nothing."""
SMALLEST = 1e-30
"""A smaller variance is none: in single precision the squares are lost."""


@stored
class FeatureSpace(NamedTuple):
    """A feature space: that of the universal expert of an architecture which opened a round.

    Clients make their prototypes with it. It is that of the round in which the clients of an expert were last sampled.
    """

    round: int
    model: str


@stored
@dataclass(frozen=True)
class Prototypes:
    """What the clients behind one expert told of their data.

    Attributes
    ----------
    label_counts : (clients, classes) tensor
    points : (clients, classes, features) tensor
        Mean features of each client's examples of each class.
    space : FeatureSpace
        The feature space that the points are in.
    """

    label_counts: Tensor
    points: Tensor
    space: FeatureSpace

    @classmethod
    def joined(cls, known: Sequence["Prototypes"]) -> "Prototypes":
        """Return those of several experts' clients, all in the same space."""
        counts, points = (torch.cat([getattr(own, key) for own in known]) for key in ("label_counts", "points"))
        return cls(counts, points, known[0].space)

    @classmethod
    def of(cls, counts: Sequence[Tensor], signatures: Sequence[Signature], space: FeatureSpace) -> "Prototypes":
        """Return those that clients made in this space, with their label counts, (classes,) each."""
        return cls(torch.stack(list(counts)), torch.stack([signature.prototypes for signature in signatures]), space)

    @property
    def pooled_counts(self) -> Tensor:
        """Examples per class of all clients together, (classes,)."""
        return self.label_counts.sum(dim=0)

    @property
    def centres(self) -> Tensor:
        """Mean features of all clients' examples of each class, (classes, features); zeros where there are none."""
        sums = (self.label_counts.unsqueeze(2) * self.points).sum(dim=0)
        return sums / self.pooled_counts.clamp(min=1e-12).unsqueeze(1)

    def pooled(self) -> "Prototypes":
        """Return those of all clients together, as if they were one."""
        return Prototypes(self.pooled_counts.unsqueeze(0), self.centres.unsqueeze(0), self.space)

    def distances(self, features: Tensor) -> Tensor:
        """Return squared distances to the nearest prototype of each class, (samples, classes), infinite for none.

        ``features``: (samples, features), in `space`.
        """
        return nearest_prototypes(features, self.label_counts, self.points)


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


def coverage(samples: Tensor, known: Prototypes) -> float:
    """Return how much of what classes are told apart by is in some samples, 0 to 1.

    It is the variance of the samples' features over that of the class means, each weighted by its examples, and at most
    1. Of samples that are drawn like the clients' examples it is 1: their variance is that of the class means and that
    within classes (law of total variance). Samples of another kind fall together in the features that the clients'
    classes are told apart by.

    Parameters
    ----------
    samples : (samples, features) tensor
        Under the prototypes' model.
    known : Prototypes
        The class means of each cluster.
    """
    between = spread(known.label_counts, known.points)
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
