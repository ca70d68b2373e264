"""The oracle: separate training of the planted groups, which no real server knows. An upper mark for clustering."""

from collections.abc import Sequence

from disue.errors import ConfigError
from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.base import Participation
from strategies.clustered import ClusteredStrategy
from strategies.roster import Roster
from strategies.updates import ClientUpdate


class Oracle(ClusteredStrategy):
    """Clusters are the planted groups.

    Raises
    ------
    ConfigError
        In a scenario that plants no groups.
    """

    def __init__(self, roster: Roster, participation: Participation, objective: LocalObjective = PLAIN) -> None:
        super().__init__(roster, participation, objective)
        self._planted: dict[str, int] = {}
        self._groups()

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the planted group of each client that ever took part."""
        groups = self._groups()
        return {name: groups[name] for name in {*self.clusters, *(update.name for update in updates)}}

    def expert_for(self, name: str) -> State | None:
        """Return the model of the client's group, also before its first round."""
        groups = self._groups()
        mates = [other for other in self.clusters if groups[other] == groups[name]]
        return super().expert_for(mates[0]) if mates else None

    def _groups(self) -> dict[str, int]:
        self._planted |= {client.name: client.group for client in self.roster.clients}
        if min(self._planted.values()) < 0:
            raise ConfigError("method: 'oracle' needs planted groups; use label-groups, rotation, label-swap or iid")
        return self._planted
