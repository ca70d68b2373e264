"""Averages that a minority of wrong models cannot move far.

None of the rules but the mean trusts what clients say of how much data they have: every model counts once. With two
models neither can be told from the other, so that all rules give their mean then, and of one model that model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Settings
from disue.models import State, flatten, unflatten
from disue.registry import Registry
from strategies.aggregation.average import weighted_average, weighted_averages
from strategies.updates import Weighted, WeightedModel

K = TypeVar("K")
Rule = Callable[[Sequence[Weighted]], State]
"""From some clients' updates to one model."""

AGGREGATORS: Registry[Callable[..., State]] = Registry("aggregator")
"""Name -> `Rule`; one that has keys takes their ``settings``, too."""
WEISZFELD_STEPS = 200
WEISZFELD_TOLERANCE = 1e-9


class AggregatorSettings(Settings):
    """How models are combined."""

    aggregator: str = Field(
        "mean", description="how the clients' models are combined, in each cluster and over all clients"
    )


class MaliciousShareSettings(Settings):
    """Aggregators `trimmed-mean`, `krum` and `multi-krum`."""

    malicious_share: float = Field(
        0.2,
        ge=0.0,
        lt=0.5,
        description="share of the models, rounded up, that trimmed-mean, krum and multi-krum withstand",
    )


@dataclass(frozen=True)
class Aggregator:
    """Makes one model of some clients' models.

    Parameters
    ----------
    rule : callable (default: the weighted mean)
        An entry of `AGGREGATORS`, with its settings.
    """

    rule: Rule

    def __call__(self, updates: Sequence[Weighted]) -> State:
        """Return the model; raise `ValueError` if there are no updates."""
        if not updates:
            raise ValueError("there is nothing to average")
        return self.rule(updates)

    def weight(self, update: Weighted) -> float:
        """Return what an update weighs in the model for all, where none is thought wrong."""
        return float(update.num_examples) if self.rule is mean else 1.0

    def of_groups(
        self, updates: Sequence[Weighted], groups: Mapping[K, Sequence[Weighted]]
    ) -> tuple[dict[K, State], State]:
        """Return the model of each group, and one for all; every update is in one group, in the same order.

        The mean for all is that of all updates. The other rules hold against a minority of a group; over all clients
        they would take those of a group that differs from the others for wrong. So theirs is the mean of the groups'
        models, each weighted by its number of clients. Of a single group it is the group's model itself.
        """
        if self.rule is mean and len(groups) > 1:
            return weighted_averages(updates, groups)
        models = {key: self(group) for key, group in groups.items()}
        if len(models) == 1:
            return models, next(iter(models.values()))
        counted = [WeightedModel(group[0].name, models[key], len(group)) for key, group in groups.items()]
        return models, weighted_average(counted)


def wrong_models(count: int, share: float) -> int:
    """Return how many of ``count`` models may be wrong: the share, rounded up, and always a minority.

    Examples
    --------
    >>> [wrong_models(count, 0.2) for count in (1, 2, 3, 5, 10, 11)]
    [0, 0, 1, 1, 2, 3]
    """
    return min(math.ceil(share * count - 1e-9), (count - 1) // 2)


@AGGREGATORS.register("mean")
def mean(updates: Sequence[Weighted]) -> State:
    """Return the mean, weighted by examples; a single wrong model can move it anywhere."""
    return weighted_average(updates)


@AGGREGATORS.register("median")
def median(updates: Sequence[Weighted]) -> State:
    """Return the median of each parameter; of an even number, the mean of the two in the middle.

    Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, option I.
    """
    return _by_parameter(updates, _middle)


@AGGREGATORS.register("trimmed-mean", MaliciousShareSettings)
def trimmed_mean(updates: Sequence[Weighted], settings: MaliciousShareSettings) -> State:
    """Return the mean of each parameter without its largest and its smallest values, `wrong_models` of each.

    Yin et al., ICML 2018, option II.
    """
    cut = wrong_models(len(updates), settings.malicious_share)
    return _by_parameter(updates, lambda values: values.sort(dim=0).values[cut : len(values) - cut].mean(dim=0))


@AGGREGATORS.register("krum", MaliciousShareSettings)
def krum(updates: Sequence[Weighted], settings: MaliciousShareSettings) -> State:
    """Return the model that lies nearest to those nearest to it, of equally near ones the first; of few, the `median`.

    Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017. Of n
    models, f of them maybe wrong, a model's score is over its n - f - 2 nearest. Where that is none, as of three, there
    is no score.
    """
    wrong = wrong_models(len(updates), settings.malicious_share)
    return _mean_of(_most_central(updates, wrong)[:1]) if _enough(updates, wrong) else median(updates)


@AGGREGATORS.register("multi-krum", MaliciousShareSettings)
def multi_krum(updates: Sequence[Weighted], settings: MaliciousShareSettings) -> State:
    """Return the mean of all models but the `wrong_models` that Krum puts last; of few, the `median`, as `krum` does.

    Blanchard et al., section 5.
    """
    wrong = wrong_models(len(updates), settings.malicious_share)
    kept = len(updates) - wrong
    return _mean_of(_most_central(updates, wrong)[:kept]) if _enough(updates, wrong) else median(updates)


@AGGREGATORS.register("geometric-median")
def geometric_median(updates: Sequence[Weighted]) -> State:
    """Return the model with the smallest sum of distances to all, by Weiszfeld's steps from the median.

    Pillutla et al., "Robust Aggregation for Federated Learning", IEEE TSP 2022; here every model counts once.
    """
    points = torch.stack([flat(update.state) for update in updates])
    centre = _middle(points)
    smallest = WEISZFELD_TOLERANCE * max(float((points - centre).norm(dim=1).max()), 1.0)
    for _ in range(WEISZFELD_STEPS):
        weights = 1.0 / (points - centre).norm(dim=1).clamp_min(smallest)
        step = (weights / weights.sum()) @ points - centre
        centre = centre + step
        if float(step.norm()) <= smallest:
            break
    like = updates[0].state
    return {name: part.to(like[name].dtype) for name, part in unflatten(centre, like).items()}


def _enough(updates: Sequence[Weighted], wrong: int) -> bool:
    """Return whether Krum has a score: whether it is over one neighbour at least."""
    return len(updates) - wrong - 2 >= 1


def _most_central(updates: Sequence[Weighted], wrong: int) -> list[Weighted]:
    """Return the updates by Krum's score: summed squared distances to the nearest n - f - 2 others."""
    points = torch.stack([flat(update.state) for update in updates])
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = len(updates) - wrong - 2
    scores = squares.sort(dim=1).values[:, 1 : nearest + 1].sum(dim=1)  # the first is its own distance, zero
    return [updates[i] for i in scores.argsort(stable=True).tolist()]


def _mean_of(updates: Sequence[Weighted]) -> State:
    return weighted_average([WeightedModel(update.name, update.state, 1) for update in updates])


def _by_parameter(updates: Sequence[Weighted], rule: Callable[[Tensor], Tensor]) -> State:
    return {
        name: rule(torch.stack([update.state[name].double() for update in updates])).to(like.dtype)
        for name, like in updates[0].state.items()
    }


def _middle(values: Tensor) -> Tensor:
    """Return the median along the first dimension."""
    ordered = values.sort(dim=0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def flat(state: State) -> Tensor:
    """Return all parameters as one float64 vector."""
    return flatten(list(state.values())).double()
