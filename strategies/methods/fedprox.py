"""FedProx: FedAvg whose clients are held near where they started.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Published values of mu: 0.001, 0.01,
0.1 and 1; 0.01 here by default.
"""

from dataclasses import replace
from typing import Self

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.methods.base import METHODS
from strategies.methods.fedavg import FedAvg
from strategies.methods.parts import Parts

USUAL_MU = 0.01


@METHODS.register("fedprox")
class FedProx(FedAvg):
    """Federated averaging with a proximal term.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    mu : float (default: 0.01)
        Weight of mu/2 ||w - w0||^2; with 0 this is FedAvg, bit for bit.
    """

    def __init__(
        self,
        main: str,
        mu: float = USUAL_MU,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, replace(objective, prox_mu=mu), aggregator)

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        objective = parts.objective(USUAL_MU)
        return cls(parts.main, objective.prox_mu, objective, parts.aggregator)
