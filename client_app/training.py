"""Local training: plain mini-batch SGD over tensors in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disue.config import RunConfig
from disue.data import Examples
from disue.device import memory_format, mixed_precision
from disue.metrics import log_prior
from disue.objective import LocalObjective


@dataclass(frozen=True)
class TrainingResult:
    """Mean loss over the last epoch, and the number of optimiser steps."""

    loss: float
    steps: int


def label_counts(y: Tensor, num_classes: int) -> Tensor:
    """Return examples per class, (classes,) float32."""
    return torch.bincount(y, minlength=num_classes).to(torch.float32)


def train(
    model: nn.Module,
    examples: Examples,
    config: RunConfig,
    objective: LocalObjective,
    generator: torch.Generator,
    device: torch.device,
    num_classes: int,
) -> TrainingResult:
    """Train ``model`` in place on a client's examples, starting and staying near where it is.

    Parameters
    ----------
    model : nn.Module
        Its present parameters are also the anchor of the proximal term.
    examples : Examples
        The client's training data.
    config : RunConfig
        ``local-epochs``, ``batch-size``, ``learning-rate``, ``momentum``, ``weight-decay``, ``mixed-precision``.
    objective : LocalObjective
        What is minimised, as the server's method wants it.
    generator : torch.Generator
        On the CPU; it alone decides the order of the examples.
    device : torch.device
    num_classes : int
    """
    layout = memory_format(device, config.mixed_precision)
    model.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    x, y = examples.x.to(device, memory_format=layout), examples.y.to(device)
    shift = log_prior(label_counts(examples.y, num_classes)).to(device) if objective.local_loss == "balanced" else None
    parameters = list(model.parameters())
    anchors = [parameter.detach().clone() for parameter in parameters] if objective.prox_mu > 0.0 else None
    optimizer = torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    losses: list[Tensor] = []
    steps = 0
    for _ in range(config.local_epochs):
        losses.clear()
        for batch in torch.randperm(len(y), generator=generator).to(device).split(config.batch_size):
            with mixed_precision(device, config.mixed_precision):
                logits = model(x[batch])
            logits = logits.float()
            loss = F.cross_entropy(logits if shift is None else logits + shift, y[batch])
            optimizer.zero_grad()
            loss.backward()
            if anchors is not None:
                _add_proximal_gradient(parameters, anchors, objective.prox_mu)
            optimizer.step()
            losses.append(loss.detach() * len(batch))
            steps += 1
    return TrainingResult(loss=float(torch.stack(losses).sum()) / len(y), steps=steps)


@torch.no_grad()
def _add_proximal_gradient(parameters: list[nn.Parameter], anchors: list[Tensor], mu: float) -> None:
    for parameter, anchor in zip(parameters, anchors, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(parameter - anchor, alpha=mu)
