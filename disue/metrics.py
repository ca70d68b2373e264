"""Numbers about models, and about how well clusters match the planted groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from disue.data.datasets import Examples
from disue.device import memory_format, place
from disue.tasks import Task


@dataclass(frozen=True)
class Evaluation:
    """How good a model is at a task: its mean loss, and the task's metrics by name (None: it cannot be said)."""

    loss: float
    metrics: Mapping[str, float | None]


def predict_logits(model: nn.Module, x: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Return what a model, or the body of one, gives for many inputs, (examples, outputs), on the CPU."""
    layout = memory_format(x, device, mixed=False)
    place(model, device, layout)  # and not in the layout of a training before
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch.to(device, memory_format=layout)).cpu() for batch in x.split(batch_size)])


def evaluate(
    task: Task, model: nn.Module, examples: Examples, device: torch.device, shift: Tensor | None = None
) -> Evaluation:
    """Evaluate a model at a task.

    Parameters
    ----------
    task : Task
        Says what the loss is, and the metrics.
    model : nn.Module
    examples : Examples
    device : torch.device
    shift : (outputs,) tensor, optional
        Added to the outputs: the log prior, for a model that was trained without one.
    """
    outputs = predict_logits(model, examples.x, device)
    if shift is not None:
        outputs = outputs + shift
    return Evaluation(float(task.loss.mean(outputs.double(), examples.y)), task.metrics(outputs, examples.y))


def confusion(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """Return how many examples of each class (row) were taken for each class (column), (classes, classes) int64."""
    from sklearn.metrics import confusion_matrix  # here, as below

    logits = predict_logits(model, examples.x, device)
    classes = range(logits.shape[1])
    return torch.from_numpy(confusion_matrix(examples.y.numpy(), logits.argmax(dim=1).numpy(), labels=classes))


def agreement_with_groups(clusters: Sequence[int], groups: Sequence[int]) -> tuple[float, float] | None:
    """Return (adjusted Rand index, normalised mutual information) of clients with a planted group; None: none has."""
    # Here, because a client on a real machine starts a process for every message, and never needs it.
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known = [(group, cluster) for group, cluster in zip(groups, clusters, strict=True) if group >= 0]
    if not known:
        return None
    planted, found = zip(*known, strict=True)
    return float(adjusted_rand_score(planted, found)), float(normalized_mutual_info_score(planted, found))


def churn(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """Return the share of the clients in both assignments that changed their cluster (0 if none are)."""
    common = before.keys() & after.keys()
    return sum(before[name] != after[name] for name in common) / len(common) if common else 0.0


def worst_decile(values: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the values (at least one of them)."""
    count = max(1, len(values) // 10)
    return float(np.mean(np.sort(np.asarray(values, dtype=float))[:count]))
