"""Numbers about models, and about how well clusters match the planted groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disue.data.datasets import Examples
from disue.device import place

PRIOR_PSEUDO_COUNT = 0.1


@dataclass(frozen=True)
class Score:
    """Accuracy (share of examples that are right) and mean cross-entropy (nats)."""

    accuracy: float
    loss: float


def log_prior(label_counts: Tensor) -> Tensor:
    """Return log label shares, with a small pseudo-count so that a missing class stays finite.

    ``label_counts``: (..., classes), examples per class; the result has the same shape.
    """
    counts = label_counts.to(torch.float32) + PRIOR_PSEUDO_COUNT
    return torch.log(counts / counts.sum(dim=-1, keepdim=True))


def predict_logits(model: nn.Module, x: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Return logits for many inputs, (examples, classes), on the CPU."""
    place(model, device)  # and not in the layout of a training before
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch.to(device)).cpu() for batch in x.split(batch_size)])


def score(model: nn.Module, examples: Examples, device: torch.device, logit_shift: Tensor | None = None) -> Score:
    """Evaluate a model on labelled examples.

    Parameters
    ----------
    model : nn.Module
    examples : Examples
    device : torch.device
    logit_shift : (classes,) tensor, optional
        Added to the logits: the log prior, for a model that was trained without one.
    """
    logits = predict_logits(model, examples.x, device)
    if logit_shift is not None:
        logits = logits + logit_shift
    accuracy = (logits.argmax(dim=1) == examples.y).double().mean()
    return Score(float(accuracy), float(F.cross_entropy(logits.double(), examples.y)))


def confusion(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """Return how many examples of each class (row) were taken for each class (column), (classes, classes) int64."""
    logits = predict_logits(model, examples.x, device)
    classes = logits.shape[1]
    pairs = examples.y * classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


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
