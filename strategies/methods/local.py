"""Local training: no sharing at all, the other end of the scale from FedAvg."""

from collections.abc import Sequence

from strategies.methods.clustered import ClusteredStrategy
from strategies.updates import ClientUpdate


class Local(ClusteredStrategy):
    """Every client is a cluster of its own and goes on from its own model, at first from the initial one."""

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return a label for each client that ever took part."""
        names = dict.fromkeys([*self.clusters, *(update.name for update in updates)])
        return {name: label for label, name in enumerate(names)}
