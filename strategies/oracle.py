"""The oracle: separate training of the planted groups, which no real server knows. An upper mark for clustering."""

from disue.objective import PLAIN, LocalObjective
from strategies.clustered import GroupedStrategy
from strategies.groupings import Planted
from strategies.outcome import Participation
from strategies.roster import Roster


class Oracle(GroupedStrategy):
    """Clusters are the planted groups.

    Raises
    ------
    ConfigError
        In a scenario that plants no groups.
    """

    def __init__(self, roster: Roster, participation: Participation, objective: LocalObjective = PLAIN) -> None:
        super().__init__(roster, participation, Planted(roster), objective)
