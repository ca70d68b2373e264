"""The oracle: separate training of the planted groups, which no real server knows. An upper mark for clustering."""

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import Planted
from strategies.methods.base import METHODS
from strategies.methods.clustered import AssignedMethod
from strategies.methods.declarations import Uses


@METHODS.register("oracle")
class Oracle(AssignedMethod):
    """Clusters are the planted groups.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    """

    uses = Uses(planted_groups=True)

    def __init__(self, main: str, objective: LocalObjective = PLAIN, aggregator: Aggregator | None = None) -> None:
        super().__init__(main, Planted(), objective, aggregator)
