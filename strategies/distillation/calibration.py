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
from disue.models import HEAD, State
from disue.signature import Signature
from strategies.distillation.discriminant import mean_points, sum_counts

WEIGHT, BIAS = f"{HEAD}weight", f"{HEAD}bias"
BATCH, MOMENTUM = 64, 0.9


class CalibrationSettings(Settings):
    """Calibrated heads."""

    virtual_features: int = Field(
        2000, ge=1, le=10**6, description="features of each class that are drawn to calibrate a head, in disue and ccvr"
    )
    calibration_epochs: int = Field(
        10, ge=0, le=10000, description="epochs in which a head is trained on them; 0: heads are not calibrated"
    )
    calibration_learning_rate: float = Field(
        1e-3, ge=1e-9, le=1e3, description="learning rate of SGD with which a head is trained on them"
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

    def calibrated(self, model: State, told: Sequence[Signature], generator: torch.Generator) -> State:
        """Return a model with a head that is calibrated.

        Parameters
        ----------
        model : State
        told : sequence of Signature
            In the model's features, each with a covariance, or its axes, for each stratum.
        generator : torch.Generator
            Draws the features, and decides their order.
        """
        features, labels = drawn(*pooled(told), self.settings.virtual_features, generator)
        epochs, rate = self.settings.calibration_epochs, self.settings.calibration_learning_rate
        return model | trained_head(model, features, labels, epochs, rate, generator)


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
    """Return features drawn from a normal distribution for each class, and their classes.

    A class of which nobody has an example has none. Parameters as `pooled` returns them.

    Returns
    -------
    features : (classes * each, features) tensor
    labels : (classes * each,) int64 tensor
    """
    there = (counts > 0).nonzero().flatten()
    noise = torch.randn(len(there), each, means.shape[1], generator=generator)
    features = means[there].unsqueeze(1) + noise @ square_root(covariances[there]).float()
    return features.flatten(end_dim=1), there.repeat_interleave(each)


def square_root(covariances: Tensor) -> Tensor:
    """Return the symmetric square roots of covariances, (..., n, n), of rounding to none below zero.

    Unlike other roots there is one only: it does not depend on the order and the signs of eigenvectors.
    """
    values, vectors = torch.linalg.eigh(covariances)
    root: Tensor = (vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)) @ vectors.mT
    return root


def trained_head(
    model: State, features: Tensor, labels: Tensor, epochs: int, learning_rate: float, generator: torch.Generator
) -> State:
    """Return a head that is trained by SGD to minimise the cross-entropy of features, from that of a model.

    Parameters
    ----------
    model : State
        Of a `Classifier`.
    features : (samples, features) tensor
    labels : (samples,) int64 tensor
    epochs : int
    learning_rate : float
    generator : torch.Generator
        Decides the order.
    """
    head = torch.cat([model[WEIGHT], model[BIAS].unsqueeze(1)], dim=1)
    inputs = F.pad(features, (0, 1), value=1.0)
    truth = F.one_hot(labels, len(head)).to(inputs.dtype)
    velocity = torch.zeros_like(head)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for x, y in zip(inputs[order].split(BATCH), truth[order].split(BATCH), strict=True):
            errors = torch.softmax(x @ head.T, dim=1) - y
            velocity = torch.addmm(velocity, errors.T, x, beta=MOMENTUM, alpha=1.0 / len(x))
            head = head.sub(velocity, alpha=learning_rate)
    return {WEIGHT: head[:, :-1].contiguous(), BIAS: head[:, -1].contiguous()}
