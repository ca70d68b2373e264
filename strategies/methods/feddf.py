"""FedDF: FedAvg, then the mean of the clients' logits is distilled into the average.

Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020, algorithm 1.
Published settings of the distillation: Adam 1e-3 with cosine annealing, early stopping; steps and batch size are the
run's, the same for every method that distils (published: batches of 128).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from strategies.distillation.distiller import Distiller
from strategies.distillation.server import Server
from strategies.flower import FederatedStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate


class FedDF(FederatedStrategy):
    """One model, taught by the ensemble of this round's clients.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    server : Server
        Model, device and seed.
    proxy : (samples, channels, height, width) tensor
        Unlabelled inputs.
    distiller : Distiller
        Teaches the average.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        server: Server,
        proxy: Tensor,
        distiller: Distiller,
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, objective)
        self.server = server
        self.proxy = proxy
        self.distiller = distiller

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Average the clients, and distil the mean of their logits into the average (eq. 3)."""
        self.average = self.aggregator(updates)
        with self.outcome.timed("distillation"):
            targets = torch.stack([self.server.logits(update.state, self.proxy) for update in updates]).mean(dim=0)
            return self.server.distil(self.distiller, self.average, self.proxy, targets, self.outcome)
