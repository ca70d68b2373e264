"""The joint discriminant of what clients told of their data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from disue.covariance import from_triangle, looked_at
from disue.discriminant import Discriminant, Normal, shrunk
from disue.signature import Signature


def discriminant_of(told: Sequence[Sequence[Signature]], features: Tensor | None = None) -> Discriminant:
    """Return the discriminant of what the clients of each expert told.

    Parameters
    ----------
    told : sequence of sequences of Signature
        Of each expert's clients, all in one feature space.
    features : (samples, features) tensor, optional
        Of a proxy set, as `disue.covariance.looked_at` gives them: the background. Where no client tells how its
        features vary, they vary as these do, less what the means of the pairs differ.
    """
    counts = torch.stack([sum_counts(own) for own in told])
    means = looked_at(torch.stack([mean_points(own) for own in told]))
    examples, within = 0.0, torch.zeros(means.shape[-1], means.shape[-1])
    for mean, signatures in zip(means, told, strict=True):
        for own in signatures:
            if own.covariance is not None:  # that within the client, and of its means around those of its cluster
                examples += float(own.label_counts.sum())
                within += sum_within(own) + scatter(own.label_counts, looked_at(own.prototypes) - mean)
    if examples:
        pooled = within / examples
    elif features is not None:
        flat, weights = means.flatten(end_dim=1), counts.flatten() / counts.sum()
        pooled = features.T.cov(correction=0) - scatter(weights, flat - weights @ flat)
    else:
        pooled = torch.eye(means.shape[-1])
    return Discriminant(counts, means, shrunk(pooled), None if features is None else Normal.of(features))


def sum_within(own: Signature) -> Tensor:
    """Return the sum of squares of all of a client's examples around its means, (features, features), as looked at."""
    assert own.covariance is not None
    if own.covariance.ndim == 1:
        return float(own.label_counts.sum()) * from_triangle(own.covariance)
    axes = looked_at(own.covariance * own.label_counts.sqrt().view(-1, 1, 1)).flatten(end_dim=1)
    return axes.T @ axes


def sum_counts(told: Sequence[Signature]) -> Tensor:
    """Return how many examples of each stratum clients have together, (strata,)."""
    return torch.stack([signature.label_counts for signature in told]).sum(dim=0)


def mean_points(told: Sequence[Signature]) -> Tensor:
    """Return the mean features of their examples of each stratum, (strata, features); zeros where there are none."""
    sums = torch.stack([signature.label_counts.unsqueeze(1) * signature.prototypes for signature in told]).sum(dim=0)
    return sums / sum_counts(told).clamp(min=1e-12).unsqueeze(1)


def scatter(weights: Tensor, off: Tensor) -> Tensor:
    """Return the weighted sum of outer products, (features, features); ``off``: (points, features)."""
    return (weights.unsqueeze(1) * off).T @ off
