"""FedDF: FedAvg, then the mean of the clients' logits is distilled into the average.

Lin et al., "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020, algorithm 1.
Published settings of the distillation: Adam 1e-3 with cosine annealing, early stopping; steps and batch size are the
run's, the same for every method that distils (published: batches of 128), and so are the views of the proxy set
(published: none).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.distillation.distiller import Distiller
from strategies.distillation.server import FixedProxy, Server
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Uses
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.updates import Contribution


@METHODS.register("feddf")
class FedDF(Method[MethodState]):
    """One model, taught by the ensemble of this round's clients.

    Parameters
    ----------
    server : Server
        Model, device and seed.
    proxy : FixedProxy
        Gives the proxy set of a round.
    distiller : Distiller
        Teaches the average.
    objective, aggregator
        See `Method`.
    """

    uses = Uses(proxies=("holdout", "dataset", "path"))

    def __init__(
        self,
        server: Server,
        proxy: FixedProxy,
        distiller: Distiller,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(server.main, objective, aggregator)
        self.server = server
        self.source, self.proxy = proxy, proxy.x
        self.distiller = distiller

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.server, parts.fixed_proxy(), parts.distiller(), parts.objective(), parts.aggregator)

    def step(self, state: MethodState, updates: Sequence[Contribution], round: Round) -> Step[MethodState]:
        """Average the clients, and distil the mean of their outputs into the average (eq. 3)."""
        average = self.aggregator(updates)
        with round.timed("distillation"):
            proxy = self.source.seen(round.number)
            targets = torch.stack([self.server.logits(update.state, proxy.seen) for update in updates]).mean(dim=0)
            taught, metrics = self.server.distil(self.distiller, average, proxy, targets, round.number)
        return Step(replace(state, universals={self.main: taught}), {self.main: average}, metrics)
