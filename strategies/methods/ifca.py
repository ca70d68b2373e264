"""IFCA: clients choose the best of K models, and every model is trained by those who chose it.

Ghosh, Chung, Yin and Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
algorithm 1 (model averaging). The number of models is given, and they start from K random initialisations.
"""

from collections.abc import Sequence

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.clustering.assignment import ByChoice
from strategies.methods.clustered import GroupedStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation


class IFCA(GroupedStrategy):
    """The iterative federated clustering algorithm. It sends K models to every client.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    models : list of State
        K initial models, all different.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        models: Sequence[State],
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, ByChoice(models), objective)

    def start_for(self, name: str) -> None:
        """Every client starts from the model that it chooses."""
        return None  # noqa: RET501
