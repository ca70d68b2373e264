"""FedAdam: FedAvg with Adam at the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2. Published settings: beta 0.9 and 0.99, and an
adaptivity of 0.001. The learning rate of the server was tuned for each data set there; 0.03 here by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from pydantic import Field

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.aggregation.server_optimizer import (
    ServerMomentumSettings,
    ServerOptimizer,
    ServerOptimizerState,
    adam,
)
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Supports
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import Contribution

USUAL_RATE = 0.03


class FedAdamSettings(ServerMomentumSettings):
    """Method `fedadam`."""

    server_decay: float = Field(
        0.99, ge=0.0, lt=1.0, description="share of the rounds before in fedadam's mean of squared changes"
    )
    server_adaptivity: float = Field(
        1e-3, ge=1e-9, le=1e3, description="fedadam adds this to the root of that mean: the smaller, the more adaptive"
    )


@stored
@dataclass(frozen=True)
class FedAdamState(MethodState):
    """With the ``memory`` of the server's optimiser."""

    memory: ServerOptimizerState = field(default_factory=ServerOptimizerState)


@METHODS.register("fedadam", FedAdamSettings)
class FedAdam(Method[FedAdamState]):
    """Federated averaging with an adaptive server; every client's expert is the universal model.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    optimizer : ServerOptimizer
        Takes the server's steps.
    """

    state_type = FedAdamState
    supports = Supports(sums=True)

    def __init__(
        self,
        main: str,
        optimizer: ServerOptimizer,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.optimizer = optimizer

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        own = FedAdamSettings.of(parts.config)
        rate = own.server_learning_rate or USUAL_RATE
        optimizer = ServerOptimizer(adam, rate, own.server_momentum, own.server_decay, own.server_adaptivity)
        return cls(parts.main, optimizer, parts.objective(), parts.aggregator)

    def step(self, state: FedAdamState, updates: Sequence[Contribution], round: Round) -> Step[FedAdamState]:
        """Take a step towards the clients' average."""
        average = self.aggregator(updates)
        model, memory = self.optimizer.step(state.memory, state.universals[self.main], average)
        return Step(replace(state, universals={self.main: model}, memory=memory), averages={self.main: average})
