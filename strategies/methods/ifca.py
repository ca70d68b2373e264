"""IFCA: clients choose the best of K models, and every model is trained by those who chose it.

Ghosh, Chung, Yin and Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
algorithm 1 (model averaging). The number of models is given, and they start from K random initialisations.
"""

from collections.abc import Sequence

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import ByChoice
from strategies.methods.clustered import AssignedMethod, AssignedState
from strategies.rounds.registry import Client


class IFCA(AssignedMethod):
    """The iterative federated clustering algorithm. It sends K models to every client.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    models : list of State
        K initial models, all different.
    """

    def __init__(
        self,
        main: str,
        models: Sequence[State],
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, ByChoice(models), objective, aggregator)

    def start(self, state: AssignedState, client: Client) -> None:
        """Return None: every client starts from the model that it chooses."""
