"""FedLC: FedAvg whose clients calibrate their logits by their own label shares.

Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration", ICML 2022; in the form of
balanced softmax (Ren et al., "Balanced Meta-Softmax", NeurIPS 2020).
"""

from dataclasses import replace

from disue.objective import PLAIN, LocalObjective
from strategies.methods.fedavg import FedAvg
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation


class FedLC(FedAvg):
    """Federated averaging with the balanced local loss.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`; the local loss of ``objective`` is always ``balanced``.
    """

    def __init__(self, roster: ClientRegistry, participation: Participation, objective: LocalObjective = PLAIN) -> None:
        super().__init__(roster, participation, replace(objective, local_loss="balanced"))
