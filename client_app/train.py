"""Local training in mini-batches, over tensors in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disue.batches import batches
from disue.config import ClientConfig
from disue.data import Examples
from disue.device import memory_format, mixed_precision, place
from disue.errors import ConfigError
from disue.models import HEAD, Classifier, State
from disue.objective import LocalObjective
from disue.optimizers import clipped, make_optimizer
from disue.tasks import Task


@dataclass(frozen=True)
class TrainingResult:
    """Mean loss over the last epoch, and the number of optimiser steps."""

    loss: float
    steps: int


def output_shift(task: Task, objective: LocalObjective, targets: Tensor) -> Tensor | None:
    """Return what an objective adds to the outputs in training, (outputs,); None: nothing.

    Raises
    ------
    ConfigError
        If the objective is ``balanced``, and the task has no label shares.
    """
    if objective.local_loss != "balanced":
        return None
    prior = task.log_prior(targets)
    if prior is None:
        raise ConfigError("local-loss: got 'balanced'; the task has no classes, use cross-entropy")
    return prior


def train(
    model: Classifier,
    examples: Examples,
    config: ClientConfig,
    objective: LocalObjective,
    generator: torch.Generator,
    device: torch.device,
    task: Task,
    drift: State | None = None,
    anchor: State | None = None,
    server_round: int = 1,
) -> TrainingResult:
    """Train ``model`` in place on a client's examples, starting and staying near where it is.

    Parameters
    ----------
    model : Classifier
        Its present parameters are also the anchor of the proximal term, unless there is another.
    examples : Examples
        The client's training data.
    config : ClientConfig
        The keys of `TrainingSettings`.
    objective : LocalObjective
        What is minimised, as the server's method wants it.
    generator : torch.Generator
        On the CPU; it alone decides the order of the examples.
    device : torch.device
    task : Task
        Says what the loss is.
    drift : State, optional
        What is added to every gradient, by parameter.
    anchor : State, optional
        What the proximal term holds the model near, by parameter.
    server_round : int (default: 1)
        Says what the learning rate is.
    """
    learning_rate = config.learning_rate_in(server_round)
    layout = memory_format(examples.x, device, config.mixed_precision)
    place(model, device, layout)
    model.train()
    x, y = examples.x.to(device, memory_format=layout), examples.y.to(device)
    shift = output_shift(task, objective, examples.y)
    shift = None if shift is None else shift.to(device)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if anchor is None and objective.prox_mu > 0.0:
        anchor = {name: parameter.detach().clone() for name, parameter in named.items()}
    losses: list[Tensor] = []
    steps = 0
    for names, epochs in _phases(list(named), config.local_epochs, objective.head_epochs):
        parameters = [named[name] for name in names]
        optimizer = make_optimizer(config.optimizer, parameters, config.momentum, config.weight_decay)
        anchors = [] if anchor is None else [anchor[name].to(device) for name in names]
        drifts = [] if drift is None else [drift[name].to(device) for name in names]
        for _ in range(epochs):
            losses.clear()
            order = torch.randperm(len(y), generator=generator).to(device)
            for batch in batches(order, config.batch_size, model.least_batch):
                with mixed_precision(device, config.mixed_precision):
                    outputs = model(x[batch])
                outputs = outputs.float()
                loss = task.loss.mean(outputs if shift is None else outputs + shift, y[batch])
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                if anchors:
                    gradients = _with_proximal_gradient(gradients, parameters, anchors, objective.prox_mu)
                if drifts:
                    gradients = tuple(gradient + own for gradient, own in zip(gradients, drifts, strict=True))
                if config.clip_gradients:
                    gradients = tuple(clipped(gradients, config.clip_gradients))
                optimizer.step(gradients, learning_rate)
                losses.append(loss.detach() * len(batch))
                steps += 1
    return TrainingResult(loss=float(torch.stack(losses).sum()) / len(y), steps=steps)


def _phases(names: list[str], local_epochs: int, head_epochs: int) -> list[tuple[list[str], int]]:
    """Return which parameters are trained, and for how many epochs, one group after the other."""
    if not head_epochs:
        return [(names, local_epochs)]
    body = [name for name in names if not name.startswith(HEAD)]
    return [([name for name in names if name.startswith(HEAD)], head_epochs), (body, local_epochs)]


@torch.no_grad()
def _with_proximal_gradient(
    gradients: Sequence[Tensor], parameters: Sequence[Tensor], anchors: Sequence[Tensor], mu: float
) -> tuple[Tensor, ...]:
    triples = zip(gradients, parameters, anchors, strict=True)
    return tuple(torch.add(gradient, parameter - anchor, alpha=mu) for gradient, parameter, anchor in triples)
