"""What clustered methods without distillation share: a model per cluster, and nothing between clusters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import ClusterAssigner, Single
from strategies.clustering.similarity import SignatureBook
from strategies.methods.base import Method, MethodState, Step
from strategies.methods.declarations import Needs
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.teams import members_of, renew, teams_of
from strategies.updates import Contribution

S = TypeVar("S", bound=MethodState)


class ClusteredMethod(Method[S]):
    """Every cluster trains a model of its own. A method says who belongs together.

    The universal model of these methods is the weighted mean of all clients' models: there is no other, and it may be
    of no use.
    """

    def common(self, state: S) -> State:
        """Return the model of a client whose cluster has no model yet: what all clusters started from."""
        return state.initial

    def start(self, state: S, client: Client) -> State | None:
        """Return the model of the client's cluster."""
        return self.expert(state, client)

    def expert(self, state: S, client: Client) -> State:
        """Return the model of the client's cluster, or the one that all started from."""
        return super().expert(state, client) or self.common(state)

    def step(self, state: S, updates: Sequence[Contribution], round: Round) -> Step[S]:
        """Average each cluster."""
        teams, before = (teams_of(clusters, round.models) for clusters in (state.clusters, round.clusters_before))
        fresh, average = self.aggregator.of_groups(updates, members_of(updates, teams))
        experts, models = renew(state.experts, fresh, teams, before), {self.main: average}
        return Step(replace(state, experts=experts, universals=models), averages=models)


@stored
@dataclass(frozen=True)
class AssignedState(MethodState):
    """With the ``memory`` of a `ClusterAssigner`."""

    memory: Any = None


class AssignedMethod(ClusteredMethod[AssignedState]):
    """A clustered method whose assigner could be any other method's, too.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    assigner : ClusterAssigner
        Says who belongs together.
    """

    state_type = AssignedState

    def __init__(
        self,
        main: str,
        assigner: ClusterAssigner[Any],
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, objective, aggregator)
        self.assigner = assigner
        self.needs = Needs(description=assigner.description)

    def begin(self, initial: State) -> AssignedState:
        """Return the state before the first round."""
        return replace(super().begin(initial), memory=self.assigner.begin())

    def candidates(self, state: AssignedState) -> Sequence[State]:
        """Return the assigner's candidates."""
        return self.assigner.candidates(state.memory, state.experts_of(self.main))

    def assign(self, state: AssignedState, updates: Sequence[Single], round: Round) -> Step[AssignedState]:
        """Return the assigner's clusters."""
        experts = state.experts_of(self.main)
        found = self.assigner.assign(state.memory, updates, round.descriptions, round.groups, experts)
        return Step(replace(state, clusters=found.clusters, memory=found.memory), metrics=found.metrics)

    def signatures(self, state: AssignedState) -> SignatureBook | None:
        """Return what the assigner compares clients by."""
        return self.assigner.book(state.memory)
