"""Local training of several clients as one network: their parameters are stacked, and one call computes for all.

A GPU is idle most of the time where each of many clients trains a small network on few examples. Each client goes the
way that it goes alone, up to rounding: where a number is that near to a kink (ReLU, the largest of a pool), one of a
hundred may go another.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from client_app.train import TrainingResult, output_shift
from disue.config import ClientConfig
from disue.data import Examples
from disue.device import mixed_precision
from disue.models import State
from disue.objective import LocalObjective
from disue.tasks import Task


def train_batched(
    model: nn.Module,
    starts: Sequence[State],
    examples: Sequence[Examples],
    config: ClientConfig,
    objective: LocalObjective,
    generators: Sequence[torch.Generator],
    device: torch.device,
    task: Task,
    server_round: int = 1,
) -> list[tuple[State, TrainingResult]]:
    """Return what comes of each start when it is trained on each client's examples; see `client_app.train.train`.

    Parameters
    ----------
    model : nn.Module
        Of the architecture of all; its parameters are of no account. It must compute each example by itself, as all
        of ours do: with BatchNorm, examples that fill a batch up would count.
    config : ClientConfig
        Its steps are of plain SGD.
    starts : sequence of State
        One for each client, and so are ``examples`` and ``generators``.
    """
    learning_rate = config.learning_rate_in(server_round)
    model.to(device).train()
    parameters = {name: torch.stack([start[name] for start in starts]).to(device) for name in starts[0]}
    anchors = dict(parameters) if objective.prox_mu > 0.0 else None
    momenta = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    x = torch.cat([own.x for own in examples]).to(device)
    y = torch.cat([own.y for own in examples]).to(device)
    plan = _Plan(examples, config, generators, device)
    none = torch.zeros(task.num_outputs)
    found = [output_shift(task, objective, own.y) for own in examples]
    shifts = torch.stack([none if shift is None else shift for shift in found]).to(device)

    def loss_of(own: State, inputs: Tensor, targets: Tensor, weights: Tensor, shift: Tensor) -> Tensor:
        with mixed_precision(device, config.mixed_precision):
            outputs = functional_call(model, own, (inputs,))
        return (task.loss.of_examples(outputs.float() + shift, targets) * weights).sum()

    gradients_of = vmap(grad_and_value(loss_of), randomness="different")
    losses = torch.zeros(len(examples), device=device)
    for indices, weights, sizes, last in plan.steps():
        gradients, values = gradients_of(parameters, x[indices], y[indices], weights, shifts)
        losses += torch.where(last, values * sizes, 0.0)
        active = sizes > 0
        for name, tensor in parameters.items():
            step = gradients[name]
            if config.weight_decay:
                step = step + config.weight_decay * tensor
            if anchors is not None:
                step = step + objective.prox_mu * (tensor - anchors[name])
            momentum = config.momentum * momenta[name] + step
            trains = active.view(-1, *[1] * (tensor.dim() - 1))
            momenta[name] = torch.where(trains, momentum, momenta[name])
            parameters[name] = torch.where(trains, tensor - learning_rate * momentum, tensor)
    stacked = {name: tensor.cpu() for name, tensor in parameters.items()}
    return [
        (
            {name: tensor[i].clone() for name, tensor in stacked.items()},
            TrainingResult(loss=float(losses[i]) / len(own.y), steps=plan.steps_of[i]),
        )
        for i, own in enumerate(examples)
    ]


class _Plan:
    """Which examples each client takes in which step, from the same draws as alone.

    Clients with fewer steps than others are done earlier, and short batches are filled up with examples of no weight.
    """

    def __init__(
        self,
        examples: Sequence[Examples],
        config: ClientConfig,
        generators: Sequence[torch.Generator],
        device: torch.device,
    ) -> None:
        batches: list[list[Tensor]] = []
        first = 0
        for own, generator in zip(examples, generators, strict=True):
            orders = [torch.randperm(len(own.y), generator=generator) + first for _ in range(config.local_epochs)]
            batches.append([batch for order in orders for batch in order.split(config.batch_size)])
            first += len(own.y)
        self.steps_of = [len(its) for its in batches]
        steps, width = max(self.steps_of), max(len(batch) for its in batches for batch in its)
        indices = torch.zeros(steps, len(examples), width, dtype=torch.int64)
        sizes = torch.zeros(steps, len(examples))
        last = torch.zeros(steps, len(examples), dtype=torch.bool)
        for i, its in enumerate(batches):
            for step, batch in enumerate(its):
                indices[step, i, : len(batch)] = batch
                sizes[step, i] = len(batch)
            last[len(its) - len(its) // config.local_epochs : len(its), i] = True
        within = torch.arange(width) < sizes.unsqueeze(-1)
        weights = within / sizes.clamp(min=1.0).unsqueeze(-1)
        self._tables = [table.to(device) for table in (indices, weights, sizes, last)]

    def steps(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield indices into all examples and weights, (clients, batch), batch sizes, and whose epoch is its last."""
        return zip(*self._tables, strict=True)
