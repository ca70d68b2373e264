"""Losses: what a task minimises, for each target and as a mean."""

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss:
    """What is minimised; a subclass says what it is of each target."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target, of the shape of ``targets``, finite and at least 0."""
        raise NotImplementedError

    def of_examples(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the targets of each example, (examples,)."""
        return self.each(outputs, targets).reshape(len(targets), -1).mean(dim=1)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over all targets, a scalar."""
        return self.each(outputs, targets).mean()


class CrossEntropy(Loss):
    """Cross-entropy in nats. ``outputs``: (examples, classes) logits, ``targets``: (examples,) int64."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each example, (examples,)."""
        return F.cross_entropy(outputs, targets, reduction="none")

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the examples, by one kernel."""
        return F.cross_entropy(outputs, targets)


class SquaredError(Loss):
    """The squared error. ``outputs``, ``targets``: (examples, targets) floats."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error of each target, (examples, targets).

        Raises
        ------
        ValueError
            If the shapes differ: they are never broadcast.
        """
        if outputs.shape != targets.shape:
            raise ValueError(f"the outputs are {tuple(outputs.shape)} and the targets {tuple(targets.shape)}")
        return torch.square(outputs - targets)
