"""FedProx: FedAvg whose clients are held near where they started.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Published values of mu: 0.001, 0.01,
0.1 and 1; 0.01 here by default.
"""

from dataclasses import replace

from disue.objective import PLAIN, LocalObjective
from strategies.methods.fedavg import FedAvg
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation


class FedProx(FedAvg):
    """Federated averaging with a proximal term.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    mu : float (default: 0.01)
        Weight of mu/2 ||w - w0||^2; with 0 this is FedAvg, bit for bit.
    """

    def __init__(
        self, roster: ClientRegistry, participation: Participation, objective: LocalObjective = PLAIN, mu: float = 0.01
    ) -> None:
        super().__init__(roster, participation, replace(objective, prox_mu=mu))
