"""The mean of what updates change, added to a model, with momentum."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from disue.models import State
from strategies.aggregation.average import mean_of
from strategies.aggregation.robust import Aggregator
from strategies.updates import Contribution

K = TypeVar("K", bound=Hashable)


def stepped(
    aggregator: Aggregator,
    updates: Sequence[Contribution],
    groups: Mapping[K, Sequence[Contribution]],
    universal: State,
    velocity: State | None,
    momentum: float,
) -> tuple[dict[K, State], State, State]:
    """Return each group's model, the universal model after a step, and the step.

    Clients that start apart make a poor mean of models. So the step is the mean of the updates, each from where its
    client started, with the momentum of the steps before (FedAvgM, Hsu et al. 2019).

    Parameters
    ----------
    aggregator : Aggregator
    updates : sequence of ClientUpdate or GroupSum
        One at least.
    groups : mapping of group to sequence of ClientUpdate or GroupSum
        Every update in one group, in the same order.
    universal : State
    velocity : State or None
        The step before, if there was one.
    momentum : float
        Share of it in this one.
    """
    models, average = aggregator.of_groups(updates, groups)
    start = mean_of([(update.start, aggregator.weight(update)) for update in updates])
    step = {name: average[name].double() - start[name].double() for name in universal}
    if velocity is not None:
        step = {name: own + momentum * velocity[name] for name, own in step.items()}
    moved = {name: (tensor.double() + step[name]).to(tensor.dtype) for name, tensor in universal.items()}
    return models, moved, {name: own.to(universal[name].dtype) for name, own in step.items()}
