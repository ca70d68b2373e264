"""What clustered methods without distillation share: a model per cluster, and nothing between clusters."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.clustering.assignment import ClusterAssigner
from strategies.clustering.similarity import SignatureBook
from strategies.flower import FederatedStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.teams import members_of, renew
from strategies.updates import ClientUpdate


class ClusteredStrategy(FederatedStrategy):
    """Every cluster trains a model of its own. A method says who belongs together.

    The universal model of such a method is the weighted mean of all clients' models: there is no other, and
    it may be of no use.
    """

    @abstractmethod
    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the cluster of every client that has one so far; cluster 2 stays cluster 2."""

    def common(self) -> State:
        """Return the model of a client whose cluster has no model yet: what all clusters started from."""
        return self.initial

    def start_for(self, name: str) -> State | None:
        """Return the model of the client's cluster."""
        return self.expert_for(name)

    def expert_for(self, name: str) -> State:
        """Return the model of the client's cluster, or the one that all started from."""
        return super().expert_for(name) or self.common()

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Average each cluster."""
        members = members_of(updates, self.clusters)
        fresh, self.average = self.aggregator.of_groups(updates, members)
        self.experts = renew(self.experts, fresh, self.clusters, self.clusters_before)
        return self.average


class GroupedStrategy(ClusteredStrategy):
    """A clustered method whose grouping could be any other method's, too.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    grouping : ClusterAssigner
        Says who belongs together.
    """

    stateful: ClassVar[tuple[str, ...]] = ("grouping",)

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        grouping: ClusterAssigner,
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, objective)
        self.grouping = grouping
        self.needs_description = grouping.description

    @property
    def signatures(self) -> SignatureBook | None:
        """What the grouping compares clients by."""
        return self.grouping.book

    def candidates(self) -> Sequence[State]:
        """Return the grouping's candidates."""
        return self.grouping.candidates(self.experts)

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the grouping's clusters."""
        clusters = self.grouping.group(updates, self.descriptions)
        self.outcome.extra |= self.grouping.metrics
        return clusters
