"""FedLC: FedAvg whose clients calibrate their logits by their own label shares.

Zhang et al., "Federated Learning with Label Distribution Skew via Logits Calibration", ICML 2022; in the form of
balanced softmax (Ren et al., "Balanced Meta-Softmax", NeurIPS 2020).
"""

from dataclasses import replace

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.methods.base import METHODS
from strategies.methods.fedavg import FedAvg


@METHODS.register("fedlc")
class FedLC(FedAvg):
    """Federated averaging with the balanced local loss.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`; the local loss of ``objective`` is always ``balanced``.
    """

    def __init__(self, main: str, objective: LocalObjective = PLAIN, aggregator: Aggregator | None = None) -> None:
        super().__init__(main, replace(objective, local_loss="balanced"), aggregator)
