"""FedAvg: one model, the weighted mean of the clients' models.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from collections.abc import Sequence
from dataclasses import replace

from strategies.methods.base import Method, MethodState, Step
from strategies.rounds.round import Round
from strategies.updates import Contribution


class FedAvg(Method[MethodState]):
    """Federated averaging: every client belongs to cluster 0, and its expert is the universal model."""

    def step(self, state: MethodState, updates: Sequence[Contribution], round: Round) -> Step[MethodState]:
        """Average the clients' models."""
        models = {self.main: self.aggregator(updates)}
        return Step(replace(state, universals=models), averages=models)
