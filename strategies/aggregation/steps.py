"""A model from round to round: the mean of what updates change is added to it, with momentum; and its running mean."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from disue.models import State, interpolate, trained
from strategies.aggregation.average import mean_of
from strategies.aggregation.robust import Aggregator
from strategies.stored import stored
from strategies.updates import Contribution

K = TypeVar("K", bound=Hashable)
DECAY = 9
"""Of a running mean: after t rounds it counts for as much as the last t / 10 of them."""


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
    step = {name: average[name].double() - start[name].double() for name in trained(universal)}
    if velocity is not None:
        step = {name: own + momentum * velocity[name] for name, own in step.items()}
    moved = {name: (universal[name].double() + own).to(universal[name].dtype) for name, own in step.items()}
    own_steps = {name: own.to(universal[name].dtype) for name, own in step.items()}
    return models, {name: moved.get(name, average[name]) for name in universal}, own_steps


@stored
@dataclass(frozen=True)
class RunningMean:
    """The mean of what a model was after each of some rounds.

    What a round comes to depends on who was sampled. Means of models of several rounds depend on that less (Polyak and
    Juditsky 1992). They decay as a polynomial, so that the first rounds are soon forgotten (Shamir and Zhang, ICML
    2013).

    Attributes
    ----------
    state : State
    rounds : int
        Of how many rounds.
    """

    state: State
    rounds: int = 1

    def followed_by(self, latest: State, least: float) -> Self:
        """Return the mean with one round more, whose model counts for at least so much."""
        share = max(least, (DECAY + 1.0) / (self.rounds + 1 + DECAY))
        mean = latest if share >= 1.0 else interpolate(self.state, latest, share)
        return type(self)(mean, self.rounds + 1)
