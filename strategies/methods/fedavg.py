"""FedAvg: one model, the weighted mean of the clients' models.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from collections.abc import Sequence

from disue.models import State
from strategies.flower import FederatedStrategy
from strategies.updates import ClientUpdate


class FedAvg(FederatedStrategy):
    """Federated averaging: every client belongs to cluster 0, and its expert is the universal model."""

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Return the average of the clients' models."""
        self.average = self.aggregator(updates)
        return self.average
