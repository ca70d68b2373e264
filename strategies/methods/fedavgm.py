"""FedAvgM: FedAvg with momentum at the server.

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
section 4.3. Published momentum: 0.9; the learning rate of the server is one there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from disue.models import State, interpolate, zeros_like
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.aggregation.server_optimizer import ServerMomentumSettings
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Supports
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import Contribution


@stored
@dataclass(frozen=True)
class FedAvgMState(MethodState):
    """With the server's ``velocity``: the sum of all changes so far, each of less account with every round."""

    velocity: State = field(default_factory=dict)


@METHODS.register("fedavgm", ServerMomentumSettings)
class FedAvgM(Method[FedAvgMState]):
    """Federated averaging with momentum; every client's expert is the universal model.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    momentum : float (default: 0.9)
        Share of the velocity that stays; with 0, and a learning rate of 1, this is FedAvg, bit for bit.
    learning_rate : float (default: 1.0)
    """

    state_type = FedAvgMState
    supports = Supports(sums=True)

    def __init__(
        self,
        main: str,
        momentum: float = 0.9,
        learning_rate: float = 1.0,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.momentum = momentum
        self.learning_rate = learning_rate

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        settings = ServerMomentumSettings.of(parts.config)
        rate = settings.server_learning_rate or 1.0
        return cls(parts.main, settings.server_momentum, rate, parts.objective(), parts.aggregator)

    def begin(self, initial: State) -> FedAvgMState:
        """Return the state before the first round, at rest."""
        return replace(super().begin(initial), velocity=zeros_like(initial))

    def step(self, state: FedAvgMState, updates: Sequence[Contribution], round: Round) -> Step[FedAvgMState]:
        """Take a step of v = beta v + (w - average), w = w - eta v."""
        average, before = self.aggregator(updates), state.universals[self.main]
        past = {name: self.momentum * tensor for name, tensor in state.velocity.items()}
        velocity = {name: past[name] + before[name] - tensor for name, tensor in average.items()}
        moved = interpolate(before, average, self.learning_rate)  # with a rate of one it is the average, bit for bit
        model = {name: tensor - self.learning_rate * past[name] for name, tensor in moved.items()}
        state = replace(state, universals={self.main: model}, velocity=velocity)
        return Step(state, averages={self.main: average})
