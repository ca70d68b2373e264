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
    average: State = {}
    for name, like in updates[0].state.items():
        accumulator = torch.zeros_like(like, dtype=torch.float64)
        for update in updates:
            accumulator.add_(update.state[name].double(), alpha=update.num_examples / total)
        average[name] = accumulator.to(like.dtype)
    return average
