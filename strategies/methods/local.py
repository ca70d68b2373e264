"""Local training: no sharing at all, the other end of the scale from FedAvg."""

from collections.abc import Sequence
from dataclasses import replace

from strategies.clustering.assignment import Single
from strategies.methods.base import METHODS, MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.rounds.round import Round


@METHODS.register("local")
class Local(ClusteredMethod[MethodState]):
    """Every client is a cluster of its own and goes on from its own model, at first from the initial one."""

    def assign(self, state: MethodState, updates: Sequence[Single], round: Round) -> Step[MethodState]:
        """Return a label for each client that ever took part."""
        names = dict.fromkeys([*state.clusters, *(update.name for update in updates)])
        return Step(replace(state, clusters={name: label for label, name in enumerate(names)}))
