"""Methods of others in sketch, whose clients keep something from round to round."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from disue.models import State
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Needs
from strategies.methods.fedavg import FedAvg
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import ClientUpdate, Contribution


@stored
@dataclass(frozen=True)
class ScaffoldState(MethodState):
    variate: State = field(default_factory=dict)


class Scaffold(Method[ScaffoldState]):
    """Karimireddy et al. 2020, algorithm 1, with a step size of one at the server."""

    state_type = ScaffoldState
    needs = Needs(memory="control-variate")

    def __init__(self, main: str, *parts: Any, learning_rate: float) -> None:
        super().__init__(main, *parts)
        self.learning_rate = learning_rate

    @classmethod
    def build(cls, parts: Parts) -> Self:
        return cls(parts.main, parts.objective(), parts.aggregator, learning_rate=parts.config.learning_rate)

    def begin(self, initial: State) -> ScaffoldState:
        zeros = {name: torch.zeros_like(tensor) for name, tensor in initial.items()}
        return replace(super().begin(initial), variate=zeros)

    def shared(self, state: ScaffoldState) -> State:
        return state.variate

    def step(self, state: ScaffoldState, updates: Sequence[Contribution], round: Round) -> Step[ScaffoldState]:
        trained = [update for update in updates if isinstance(update, ClientUpdate)]
        variate = {
            name: own
            + sum((u.start[name] - u.state[name]) / (u.steps * self.learning_rate) - own for u in trained)
            / len(round.models)
            for name, own in state.variate.items()
        }
        models = {self.main: self.aggregator(updates)}
        return Step(replace(state, universals=models, variate=variate), averages=models)


class FedPer(FedAvg):
    """Arivazhagan et al. 2019: the clients' heads are their own."""

    needs = Needs(memory="personal-head")


SKETCHES: dict[str, type[Method[Any]]] = {"scaffold-sketch": Scaffold, "fedper-sketch": FedPer}


def register() -> None:
    """Let runs of this process have them."""
    for name, method in SKETCHES.items():
        METHODS.register(name)(method)
