"""SCAFFOLD: FedAvg whose clients are kept from drifting apart by control variates.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1, option
II, with the published learning rate of one at the server. A client adds c - c_i to every gradient: c_i is the mean
gradient that it followed in the last round in which it took part, and c the mean of all c_i. The client's
side is `ControlVariate` of `client_app.memory`. The server learns c from the models that clients send, so that they
send no more than in FedAvg. Models are weighted by examples, as everywhere here, and variates are not; the paper
weights neither. Its clients have no momentum; see `disue.gradients` for what momentum does to a variate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from disue.errors import ConfigError
from disue.gradients import mean_gradient
from disue.models import State, interpolate, trained, with_statistics, zeros_like
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import Aggregator, flat
from strategies.aggregation.server_optimizer import ServerStepSettings
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Needs
from strategies.methods.parts import Parts
from strategies.methods.settings import StrategyConfig
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import ClientUpdate, Contribution, WeightedModel


@stored
@dataclass(frozen=True)
class ScaffoldState(MethodState):
    """With the ``variate`` of all clients, c."""

    variate: State = field(default_factory=dict)


@METHODS.register("scaffold", ServerStepSettings)
class Scaffold(Method[ScaffoldState]):
    """Federated averaging with control variates; its first round is that of FedAvg, bit for bit.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    gradient : callable
        From a client's start, its end, its number of steps and the round to the mean gradient that it followed.
    learning_rate : float (default: 1.0)
        The server's.
    caps : Caps
        Bounds the length of a client's variate by those of the others.
    """

    state_type = ScaffoldState
    needs = Needs(memory="control-variate")

    def __init__(
        self,
        main: str,
        gradient: Callable[[State, State, int, int], State],
        learning_rate: float = 1.0,
        caps: Caps | None = None,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.gradient = gradient
        self.learning_rate = learning_rate
        self.caps = caps or Caps()

    @classmethod
    def check(cls, config: StrategyConfig) -> None:
        """Refuse steps of which no gradient can be told."""
        for key, value, use in (
            ("optimizer", config.optimizer, "sgd"),
            ("clip-gradients", config.clip_gradients, 0.0),
        ):
            if value != use:
                raise ConfigError(f"{key}: got {value!r}; method 'scaffold' goes by the steps of plain SGD, use {use}")

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        config = parts.config
        rate = ServerStepSettings.of(config).server_learning_rate or 1.0

        def gradient(start: State, end: State, steps: int, server_round: int) -> State:
            return mean_gradient(start, end, steps, config.learning_rate_in(server_round), config.momentum)

        return cls(parts.main, gradient, rate, parts.caps, parts.objective(), parts.aggregator)

    def begin(self, initial: State) -> ScaffoldState:
        """Return the state before the first round, with a variate of zeros."""
        return replace(super().begin(initial), variate=zeros_like(trained(initial)))

    def shared(self, state: ScaffoldState) -> State:
        """Return c."""
        return state.variate

    def step(self, state: ScaffoldState, updates: Sequence[Contribution], round: Round) -> Step[ScaffoldState]:
        """Go towards the average, and let c follow the directions that the clients went (line 17).

        Where (x - y_i) / (K eta) is the direction of client i, the change of its variate is that less c.
        """
        average, before = self.aggregator(updates), state.universals[self.main]
        directions = self._directions([own for own in updates if isinstance(own, ClientUpdate)], round.number)
        model = with_statistics(interpolate(before, average, self.learning_rate), average)
        share = len(directions) / len(round.models)
        variate = interpolate(state.variate, self.aggregator(directions), share)
        return Step(replace(state, universals={self.main: model}, variate=variate), averages={self.main: average})

    def _directions(self, updates: Sequence[ClientUpdate], server_round: int) -> list[WeightedModel]:
        """Return the mean gradient that each client followed, none much longer than the others'.

        A client says how many steps it took, and one says of few that they were long.
        """
        found = {own.name: self.gradient(own.start, own.state, max(own.steps, 1), server_round) for own in updates}
        lengths = {name: float(flat(gradient).norm()) for name, gradient in found.items()}
        allowed = self.caps.gradients(lengths)
        shares = {name: allowed[name] / (length or 1.0) for name, length in lengths.items()}
        return [
            WeightedModel(name, {key: shares[name] * tensor for key, tensor in gradient.items()}, 1)
            for name, gradient in found.items()
        ]
