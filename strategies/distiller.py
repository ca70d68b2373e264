"""Universal distillation: a student that starts from the average learns the experts' vote on the proxy set."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disue.metrics import predict_logits
from disue.models import State, get_state


@dataclass(frozen=True)
class Distilled:
    """The student, and what the guard saw.

    ``average_loss`` and ``student_loss`` are the divergence from the teacher (nats) on the held-out part of
    the proxy set, before and after; ``kept_average`` tells that the student was not better.
    """

    state: State
    steps: int
    average_loss: float
    student_loss: float
    kept_average: bool


@dataclass(frozen=True)
class Distiller:
    """Adam with a cosine schedule, early stopping and a guard, on a fixed proxy set.

    Parameters
    ----------
    steps : int (default: 200)
        Most optimiser steps; 0 keeps the average.
    learning_rate : float (default: 0.001)
    batch_size : int (default: 128)
    temperature : float (default: 1.0)
        Both distributions are softened by it, and the loss is scaled by its square (Hinton et al. 2015).
    held_out : float (default: 0.2)
        Share of the proxy set that is never trained on.
    check_every : int (default: 20)
        Steps between two looks at the held-out part.
    patience : int (default: 3)
        Looks without improvement after which it stops.

    References
    ----------
    Settings as in FedDF (Lin et al. 2020, section 4): Adam 1e-3, cosine, batch 128, T=1, early stop, start from
    the weighted average.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    batch_size: int = 128
    temperature: float = 1.0
    held_out: float = 0.2
    check_every: int = 20
    patience: int = 3

    def distil(
        self, student: nn.Module, x: Tensor, targets: Tensor, generator: torch.Generator, device: torch.device
    ) -> Distilled:
        """Teach ``student``, which holds the average, and return the best of all states looked at.

        Parameters
        ----------
        student : nn.Module
            Holds the weighted average; it is trained in place.
        x : (samples, channels, height, width) tensor
            The proxy set.
        targets : (samples, classes) tensor
            The teacher's logits.
        generator : torch.Generator
            On the CPU; decides what is held out and the order of the samples.
        device : torch.device
        """
        order = torch.randperm(len(x), generator=generator)
        held_out, used = order.tensor_split([max(1, round(self.held_out * len(x)))])
        best_state = get_state(student)
        average_loss = best_loss = self._divergence(student, x[held_out], targets[held_out], device)
        taken = 0
        if self.steps and len(used):
            inputs, soft = (
                x[used].to(device),
                F.log_softmax(targets[used].to(device) / self.temperature, dim=1),
            )
            optimizer = torch.optim.Adam(student.parameters(), lr=self.learning_rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
            looks_left = self.patience
            batches = iter(_endless_batches(len(used), self.batch_size, generator))
            while taken < self.steps and looks_left:
                student.train()
                for _ in range(min(self.check_every, self.steps - taken)):
                    batch = next(batches).to(device)
                    loss = self._loss(student(inputs[batch]), soft[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    taken += 1
                value = self._divergence(student, x[held_out], targets[held_out], device)
                looks_left = self.patience if value < best_loss else looks_left - 1
                if value < best_loss:
                    best_loss, best_state = value, get_state(student)
        return Distilled(
            state=best_state,
            steps=taken,
            average_loss=average_loss,
            student_loss=best_loss,
            kept_average=not best_loss < average_loss,
        )

    def _loss(self, logits: Tensor, soft_targets: Tensor) -> Tensor:
        scaled = F.log_softmax(logits / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(scaled, soft_targets, log_target=True, reduction="batchmean")

    def _divergence(self, model: nn.Module, x: Tensor, targets: Tensor, device: torch.device) -> float:
        logits = predict_logits(model, x, device)
        return float(self._loss(logits, F.log_softmax(targets.cpu() / self.temperature, dim=1)))


def _endless_batches(size: int, batch_size: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
    while True:
        yield from torch.randperm(size, generator=generator).split(batch_size)
