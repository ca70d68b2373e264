"""What clustered methods without distillation share: a model per cluster, and nothing between clusters."""

from abc import abstractmethod
from collections.abc import Sequence

from disue.models import State
from strategies.aggregators import weighted_average
from strategies.base import FederatedStrategy
from strategies.experts import members_of, renew
from strategies.matching import match_clusters
from strategies.updates import ClientUpdate


class ClusteredStrategy(FederatedStrategy):
    """Every cluster trains a model of its own. A method says who belongs together.

    The universal model of such a method is the weighted mean of all clients' models: there is no other, and
    it may be of no use.
    """

    @abstractmethod
    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return a label for every client that has one so far; labels need not be stable."""

    def start_for(self, name: str) -> State:
        """Return the model of the client's cluster, or the universal model for a client without one."""
        expert = self.expert_for(name)
        return self.universal if expert is None else expert

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Group the clients and average each cluster."""
        self.average = weighted_average(updates)
        with self.outcome.timed("clustering"):
            before, self.clusters = self.clusters, match_clusters(self.clusters, self.group(server_round, updates))
            averages = {k: weighted_average(group) for k, group in members_of(updates, self.clusters).items()}
            self.experts = renew(self.experts, averages, self.clusters, before)
        return self.average
