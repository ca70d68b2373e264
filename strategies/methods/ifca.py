"""IFCA: clients choose the best of K models, and every model is trained by those who chose it.

Ghosh, Chung, Yin and Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
algorithm 1 (model averaging). The number of models is given, and they start from K random initialisations.
"""

from collections.abc import Sequence
from typing import Self

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import ByChoice
from strategies.methods.base import METHODS
from strategies.methods.clustered import AssignedMethod, AssignedState
from strategies.methods.declarations import Supports, Uses
from strategies.methods.parts import Parts
from strategies.rounds.registry import Client


@METHODS.register("ifca")
class IFCA(AssignedMethod):
    """The iterative federated clustering algorithm. It sends K models to every client.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    models : list of State
        K initial models, all different.
    """

    uses = Uses(given_number=True, choices=True)
    supports = Supports(uncovered="a client's choice of a model, use another")

    def __init__(
        self,
        main: str,
        models: Sequence[State],
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, ByChoice(models), objective, aggregator)

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.main, parts.random_models(), parts.objective(), parts.aggregator)

    def start(self, state: AssignedState, client: Client) -> None:
        """Return None: every client starts from the model that it chooses."""
