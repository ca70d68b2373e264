"""Distances to class prototypes, in the teachers' vote and in the gate of a finished run."""

import torch
from torch import Tensor


def nearest_prototypes(features: Tensor, label_counts: Tensor, points: Tensor) -> Tensor:
    """Return squared distances to the nearest prototype of each class, (samples, classes), infinite for none.

    Parameters
    ----------
    features : (samples, features) tensor
    label_counts : (clients, classes) tensor
        A client has a prototype of each class of which it has examples.
    points : (clients, classes, features) tensor
        In the same feature space.
    """
    nearest = torch.full((len(features), points.shape[1]), torch.inf)
    for counts, own in zip(label_counts, points, strict=True):  # not all at once: clients may be many
        squared = torch.cdist(features, own).square()
        nearest = torch.minimum(nearest, squared.masked_fill(counts == 0, torch.inf))
    return nearest


def spread(label_counts: Tensor, points: Tensor) -> float:
    """Return the variance of examples that lie at their prototypes, summed over the features.

    ``label_counts``, ``points``: as in `nearest_prototypes`.
    """
    weights = label_counts.reshape(-1) / label_counts.sum()
    flat = points.reshape(len(weights), -1)
    return float(weights @ (flat - weights @ flat).square().sum(dim=1))
