"""The oracle: separate training of the planted groups, which no real server knows. An upper mark for clustering."""

from disue.objective import PLAIN, LocalObjective
from strategies.clustering.assignment import Planted
from strategies.methods.clustered import GroupedStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation


class Oracle(GroupedStrategy):
    """Clusters are the planted groups.

    Raises
    ------
    ConfigError
        In a scenario that plants no groups.
    """

    def __init__(self, roster: ClientRegistry, participation: Participation, objective: LocalObjective = PLAIN) -> None:
        super().__init__(roster, participation, Planted(roster), objective)
