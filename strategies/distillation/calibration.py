"""A calibrated head: trained on features that are drawn as clients tell that theirs are distributed.

Classifier calibration with virtual representations (CCVR, Luo et al., "No Fear of Heterogeneity", NeurIPS 2021): label
skew spoils the head of an average more than its body. Clients tell the mean and the covariance of the features of each
class; features of each class are drawn from the normal distribution that these make together, as many of each, and the
head learns to tell them apart. The body stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from disue.config import Settings
from disue.covariance import from_triangle
from disue.discriminant import positive
from disue.models import HEAD, State
from disue.optimizers import cosine
from disue.signature import Signature
from strategies.distillation.discriminant import mean_points, sum_counts

WEIGHT, BIAS = f"{HEAD}weight", f"{HEAD}bias"
BATCH, MOMENTUM = 64, 0.9
JITTER = 1e-10
"""Share of its mean variance in a covariance, so that it has a Cholesky factor."""
AT_ONCE = 8
"""Heads that are trained together: more would take more memory, and hardly less time."""


class CalibrationSettings(Settings):
    """Calibrated heads."""

    virtual_features: int = Field(
        256, ge=1, le=10**6, description="features of each class that are drawn to calibrate a head, in disue and ccvr"
    )
    calibration_epochs: int = Field(
        10, ge=0, le=10000, description="epochs in which a head is trained on them; 0: heads are not calibrated"
    )
    calibration_learning_rate: float = Field(
        0.016,
        ge=1e-9,
        le=1e3,
        description="first learning rate of SGD with which a head is trained on them; it falls as a cosine",
    )


@dataclass(frozen=True)
class Calibrator:
    """Calibrates heads.

    Parameters
    ----------
    settings : CalibrationSettings
    """

    settings: CalibrationSettings

    def __bool__(self) -> bool:
        """Return whether heads are calibrated at all."""
        return self.settings.calibration_epochs > 0

    def calibrated(
        self, models: Sequence[State], told: Sequence[Sequence[Signature]], generators: Sequence[torch.Generator]
    ) -> list[State]:
        """Return models of one architecture with heads that are calibrated, some of them at a time.

        A model whose head would not be finite is returned as it is.

        Parameters
        ----------
        models : sequence of State
        told : sequence of sequence of Signature
            For each model, in its features, each with a covariance, or its axes, for each stratum.
        generators : sequence of torch.Generator
            For each model: draws the features.
        """
        found: list[State] = []
        for i in range(0, len(models), AT_ONCE):
            some = models[i : i + AT_ONCE]
            each = zip(told[i : i + AT_ONCE], generators[i : i + AT_ONCE], strict=True)
            samples = [drawn(*pooled(own), self.settings.virtual_features, generator) for own, generator in each]
            epochs, rate = self.settings.calibration_epochs, self.settings.calibration_learning_rate
            heads = trained_heads(some, samples, epochs, rate)
            found += [model | head if finite(head) else model for model, head in zip(some, heads, strict=True)]
        return found


def finite(state: State) -> bool:
    """Return whether all numbers of a state are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


def pooled(told: Sequence[Signature]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the counts, means and unbiased covariances of all clients' examples together (eq. 3 and 4).

    Of a class of which there is at most one example the covariance is zero.

    Returns
    -------
    counts : (classes,) tensor
    means : (classes, features) tensor
    covariances : (classes, features, features) tensor, float64
    """
    counts, means = sum_counts(told), mean_points(told)
    scatter = torch.zeros(*means.shape, means.shape[1], dtype=torch.float64)
    for own in told:
        off = (own.prototypes - means).double()
        scatter += own.label_counts.double().view(-1, 1, 1) * off.unsqueeze(2) * off.unsqueeze(1)
        scatter += _scatter_within(own)
    return counts, means, scatter / (counts.double() - 1.0).clamp(min=1.0).view(-1, 1, 1)


def _scatter_within(own: Signature) -> Tensor:
    """Return the sums of squares of a client's examples of each class around their mean, (classes, features, features).

    A covariance is unbiased, and axes are those of one that is not (`disue.covariance`).
    """
    assert own.covariance is not None
    counts = own.label_counts.double().view(-1, 1, 1)
    if own.covariance.ndim == 3:
        axes = own.covariance.double()
        return counts * (axes.mT @ axes)
    return (counts - 1.0).clamp(min=0.0) * from_triangle(own.covariance).double()


def drawn(
    counts: Tensor, means: Tensor, covariances: Tensor, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return features drawn from a normal distribution for each class, and their classes, in turn.

    There are ``each`` times as many as classes. Classes of which there is less than one example have none, and the
    others more. The noise of all classes is the same.
    Parameters as `pooled` returns them.

    Returns
    -------
    features : (classes * each, features) tensor
    labels : (classes * each,) int64 tensor
    """
    there = (counts >= counts.max().clamp(max=1.0)).nonzero().flatten()
    labels = there[torch.arange(len(counts) * each) % len(there)]
    size = means.shape[1]
    noise = orthogonal_noise(-(-len(labels) // len(there)), size, generator)
    features = torch.empty(len(labels), size)
    for i, (mean, root) in enumerate(zip(means[there], roots(covariances[there]).float(), strict=True)):
        own = features[i :: len(there)]
        torch.addmm(mean, noise[: len(own)], root.mT, out=own)
    return features, labels


def orthogonal_noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return standard normal noise, (count, size), in pairs of opposites, of which ``size`` at a time are orthogonal.

    Its mean is zero, and of whole blocks its covariance is one, where independent noise has them nearly (orthogonal
    coupling, Yu et al., "Orthogonal Random Features", NeurIPS 2016): a tenth of it does as well.
    """
    blocks = [torch.linalg.qr(torch.randn(size, size, generator=generator)).Q for _ in range(-(-count // (2 * size)))]
    directions = size**0.5 * torch.cat(blocks)
    return torch.stack([directions, -directions], dim=1).flatten(end_dim=1)[:count]


def roots(covariances: Tensor) -> Tensor:
    """Return the Cholesky factors of covariances, (..., n, n), each with `JITTER` in it; of none, nearly none."""
    variances = covariances.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp(min=1e-12)
    jitter = JITTER * variances[..., None, None] * torch.eye(covariances.shape[-1], dtype=covariances.dtype)
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(covariances + jitter)
    if failed.any():  # a client may tell of what is no covariance
        factors = torch.linalg.cholesky(positive(covariances) + jitter)
    return factors


def trained_heads(
    models: Sequence[State], samples: Sequence[tuple[Tensor, Tensor]], epochs: int, learning_rate: float
) -> list[State]:
    """Return heads that are trained by SGD to minimise the cross-entropy of features, from those of the models.

    The steps of all heads are taken together, each on the next of the head's features: these are in no order.

    Parameters
    ----------
    models : sequence of State
        Of `Classifier` of one architecture.
    samples : sequence of pair of (samples, features) tensor and (samples,) tensor
        Features and classes for each head, as many for each.
    epochs : int
    learning_rate : float
    """
    inputs, heads = torch.stack([features for features, _ in samples]), torch.stack([model[WEIGHT] for model in models])
    has_bias = BIAS in models[0]
    if has_bias:
        inputs = F.pad(inputs, (0, 1), value=1.0)
        heads = torch.cat([heads, torch.stack([model[BIAS] for model in models]).unsqueeze(2)], dim=2)
    truth = torch.stack([F.one_hot(labels, heads.shape[1]).to(inputs.dtype) for _, labels in samples])
    batches = list(zip(inputs.split(BATCH, dim=1), truth.split(BATCH, dim=1), strict=True))
    velocity = torch.zeros_like(heads)
    for (x, y), rate in zip(batches * epochs, cosine(learning_rate, len(batches) * epochs), strict=True):
        errors = torch.softmax(x @ heads.mT, dim=2) - y
        velocity = torch.baddbmm(velocity, errors.mT, x, beta=MOMENTUM, alpha=1.0 / x.shape[1])
        heads = heads.sub(velocity, alpha=rate)
    if not has_bias:
        return [{WEIGHT: head.contiguous()} for head in heads]
    return [{WEIGHT: head[:, :-1].contiguous(), BIAS: head[:, -1].contiguous()} for head in heads]
