"""Universal distillation: a student that starts from the average learns the experts' vote on the proxy set."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from disue.batches import batches
from disue.config import Settings
from disue.device import memory_format, mixed_precision
from disue.metrics import predict_logits
from disue.models import Classifier, State, fill, get_state, interpolate
from disue.optimizers import Adam, cosine
from disue.tasks import Task


class DistillerSettings(Settings):
    """Distillation."""

    temperature: float = Field(1.0, ge=0.01, le=1e4, description="softmax temperature of distillation")
    distill_steps: int = Field(
        200,
        ge=0,
        le=10**6,
        description="most optimiser steps of distillation per round; 0: none",
    )
    distill_batch_size: int = Field(64, ge=1, le=10**6, description="mini-batch of distillation")
    distill_learning_rate: float = Field(0.001, ge=1e-9, le=1e3, description="Adam learning rate of distillation")


@dataclass(frozen=True)
class Distilled:
    """The outcome of a distillation, and what the guard saw.

    Attributes
    ----------
    state : State
        The mixture of average and student, or the average where the guard kept it.
    student : State
        The student itself, whatever the guard says.
    steps : int
        Optimiser steps that were taken.
    average_loss, student_loss : float
        `Task.divergence` from the teacher on the held-out part of the proxy set, before and after.
    average_evidence, result_evidence : float
        Agreement of the average and of the mixture with the evidence on the held-out part; 1 where there is one
        stratum only.
    kept_average : bool
    """

    state: State
    student: State
    steps: int
    average_loss: float
    student_loss: float
    average_evidence: float
    result_evidence: float
    kept_average: bool


@dataclass(frozen=True)
class Distiller:
    """Adam with a cosine schedule, early stopping and a guard, on a fixed proxy set.

    Parameters
    ----------
    steps : int (default: 200)
        Most optimiser steps; 0 keeps the average.
    learning_rate : float (default: 0.001)
    batch_size : int (default: 64)
    temperature : float (default: 1.0)
        See `Task.divergence`.
    student_share : float (default: 1.0)
        The result lies so far from the average to the student, parameter by parameter.
    held_out : float (default: 0.2)
        Share of the proxy set that is never trained on.
    check_every : int (default: 40)
        Steps between two looks at the held-out part.
    patience : int (default: 3)
        Looks without improvement after which it stops.

    References
    ----------
    Settings as in FedDF (Lin et al. 2020, section 4): Adam 1e-3, cosine, T=1, early stop, start from the weighted
    average. Ours: the mixture with the average, and the guard.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    batch_size: int = 64
    temperature: float = 1.0
    student_share: float = 1.0
    held_out: float = 0.2
    check_every: int = 40
    patience: int = 3

    def distil(
        self,
        task: Task,
        student: Classifier,
        x: Tensor,
        targets: Tensor,
        generator: torch.Generator,
        device: torch.device,
        evidence: Tensor | None = None,
        views: int = 0,
    ) -> Distilled:
        """Teach ``student``, which holds the average, and return the best of all states looked at.

        Parameters
        ----------
        task : Task
            Says what the student minimises, and which stratum outputs speak for.
        student : Classifier
            Holds the weighted average; it is trained in place.
        x : (samples, *shape) tensor
            The proxy set.
        targets : (samples, outputs) tensor
            The teacher's outputs.
        generator : torch.Generator
            On the CPU; decides what is held out and the order of the samples.
        device : torch.device
        evidence : (samples,) tensor, optional
            Strata that the guard believes in; where there are none, those that the teacher speaks for.
        views : int (default: 0)
            As many augmented copies of all samples are appended to them, in the same order: `ProxySet`.
        """
        count = len(x) // (1 + views)
        order = torch.randperm(count, generator=generator)
        held_out, used = order.tensor_split([max(1, round(self.held_out * count))])
        used = torch.cat([used + i * count for i in range(1 + views)])
        believed = (task.predicted_strata(targets) if evidence is None else evidence)[held_out].cpu()

        def divergence(outputs: Tensor) -> float:
            return float(task.divergence(outputs, targets[held_out].cpu(), self.temperature))

        def agreement(outputs: Tensor) -> float:
            return float((task.predicted_strata(outputs) == believed).double().mean())

        average = get_state(student)
        best_state = average
        best_outputs = predict_logits(student, x[held_out], device)
        average_loss = best_loss = divergence(best_outputs)
        average_evidence = agreement(best_outputs)
        taken = 0
        if self.steps and len(used):
            layout = memory_format(x, device, mixed=False)
            inputs, teacher = x[used].to(device, memory_format=layout), targets[used].to(device)
            optimizer = Adam([parameter for parameter in student.parameters() if parameter.requires_grad])
            learning_rates = cosine(self.learning_rate, self.steps)
            looks_left = self.patience
            stream = _endless_batches(len(used), self.batch_size, student.least_batch, generator)
            while taken < self.steps and looks_left:
                student.train()
                for _ in range(min(self.check_every, self.steps - taken)):
                    batch = next(stream).to(device)
                    with mixed_precision(device):
                        outputs = student(inputs[batch])
                    loss = task.divergence(outputs.float(), teacher[batch], self.temperature)
                    optimizer.step(
                        torch.autograd.grad(loss, optimizer.parameters, materialize_grads=True), next(learning_rates)
                    )
                    taken += 1
                outputs = predict_logits(student, x[held_out], device)
                value = divergence(outputs)
                looks_left = self.patience if value < best_loss else looks_left - 1
                if value < best_loss:
                    best_loss, best_state, best_outputs = value, get_state(student), outputs
        result, result_outputs = best_state, best_outputs
        if self.student_share < 1.0:
            result = interpolate(average, best_state, self.student_share)
            fill(student, result)
            result_outputs = predict_logits(student, x[held_out], device)
        result_evidence = agreement(result_outputs)
        kept_average = not best_loss < average_loss or result_evidence < average_evidence
        return Distilled(
            state=average if kept_average else result,
            student=best_state,
            steps=taken,
            average_loss=average_loss,
            student_loss=best_loss,
            average_evidence=average_evidence,
            result_evidence=result_evidence,
            kept_average=kept_average,
        )


def _endless_batches(count: int, size: int, least: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from batches(torch.randperm(count, generator=generator), size, least)
