"""FedAvg: one model, the weighted mean of the clients' models.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from collections.abc import Sequence
from dataclasses import replace

from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Supports
from strategies.rounds.round import Round
from strategies.updates import Contribution


@METHODS.register("fedavg")
class FedAvg(Method[MethodState]):
    """Federated averaging: every client belongs to cluster 0, and its expert is the universal model."""

    supports = Supports(sums=True)

    def step(self, state: MethodState, updates: Sequence[Contribution], round: Round) -> Step[MethodState]:
        """Average the clients' models."""
        models = {self.main: self.aggregator(updates)}
        return Step(replace(state, universals=models), averages=models)
