"""Averaging client models into one."""

from collections.abc import Sequence

import torch

from disue.models import State
from strategies.updates import ClientUpdate


def weighted_average(updates: Sequence[ClientUpdate]) -> State:
    """Return the mean of the clients' models, weighted by their examples (FedAvg, McMahan et al. 2017, alg. 1).

    Sums are taken in float64 in the order of ``updates``, so equal input gives equal bits.

    Raises
    ------
    ValueError
        If there are no updates.
    """
    if not updates:
        raise ValueError("there is nothing to average")
    total = sum(update.num_examples for update in updates)
    like = updates[0].state
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in like.items()}
    for update in updates:  # each model is looked at once: it may be in a file
        for name, tensor in update.state.items():
            sums[name].add_(tensor.double(), alpha=update.num_examples / total)
    return {name: accumulator.to(like[name].dtype) for name, accumulator in sums.items()}
