"""Averaging client models into one."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from disue.models import State
from strategies.updates import Weighted

K = TypeVar("K", bound=Hashable)


def weighted_average(updates: Sequence[Weighted]) -> State:
    """Return the mean of the clients' models, weighted by their examples (FedAvg, McMahan et al. 2017, alg. 1).

    Sums are taken in float64 in the order of ``updates``, so equal input gives equal bits.

    Raises
    ------
    ValueError
        If there are no updates.
    """
    return weighted_averages(updates, {})[1]


def weighted_averages(
    updates: Sequence[Weighted], groups: Mapping[K, Sequence[Weighted]]
) -> tuple[dict[K, State], State]:
    """Return the `weighted_average` of each group and that of all, with one look at each model: it may be in a file.

    Parameters
    ----------
    updates : sequence of Weighted
    groups : mapping of group to sequence of Weighted
        Some of the updates each, in the same order; each in one group at most.
    """
    everyone, sums, means = WeightedSum(updates), dict[K, WeightedSum](), dict[K, State]()
    group_of = {update.name: key for key, group in groups.items() for update in group}
    for update in updates:
        key = group_of.get(update.name)
        if key is not None and key not in sums:
            sums[key] = WeightedSum(groups[key])
        wanted = [everyone] if key is None else [everyone, sums[key]]
        for name, tensor in update.state.items():
            exact = tensor.double()
            for own in wanted:
                own.add(name, exact, update.num_examples)
        if key is not None and update is groups[key][-1]:  # its sum is not needed any more: groups may be many
            means[key] = sums.pop(key).mean()
    return {key: means[key] for key in groups}, everyone.mean()


def mean_of(models: Sequence[tuple[State, float]]) -> State:
    """Return the mean of models, each with its weight; the same model is looked at once, however often it is there."""
    distinct: dict[int, tuple[State, float]] = {}
    for state, weight in models:
        _, before = distinct.get(id(state), (state, 0.0))
        distinct[id(state)] = state, before + weight
    total = sum(weight for _, weight in distinct.values())
    like = models[0][0]
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in like.items()}
    for state, weight in distinct.values():
        for name, tensor in state.items():
            sums[name].add_(tensor.double(), alpha=weight / total)
    return {name: tensor.to(like[name].dtype) for name, tensor in sums.items()}


class WeightedSum:
    """The weighted sum of some models, in float64."""

    def __init__(self, updates: Sequence[Weighted]) -> None:
        if not updates:
            raise ValueError("there is nothing to average")
        self.total = sum(update.num_examples for update in updates)
        self.like = updates[0].state
        self.sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in self.like.items()}

    def add(self, name: str, exact: Tensor, num_examples: int) -> None:
        """Add a tensor, in float64, of a model of so many examples."""
        self.sums[name].add_(exact, alpha=num_examples / self.total)

    def mean(self) -> State:
        """Return the mean."""
        return {name: accumulator.to(self.like[name].dtype) for name, accumulator in self.sums.items()}
