"""Calibrated heads of a cluster's or of all clusters' model, on what clients told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from disue.models import State, interpolate
from disue.seeding import torch_rng
from strategies.distillation.calibration import Calibrator
from strategies.distillation.knowledge import Knowledge
from strategies.distillation.server import Server


@dataclass(frozen=True)
class Heads:
    """See the module.

    Parameters
    ----------
    server : Server
        Task, models and seed.
    calibrator : Calibrator
    """

    server: Server
    calibrator: Calibrator

    def calibrated(
        self,
        knowledge: Knowledge,
        models: Mapping[int, State],
        model: str,
        clients: Mapping[int, Sequence[str]],
        inputs: Tensor | None,
        server_round: int,
        share: float,
    ) -> dict[int, State]:
        """Return models with calibrated heads; those are left out whose clients did not all tell axes of each class.

        Parameters
        ----------
        knowledge : Knowledge
        models : mapping of number to State
            Of one architecture; the numbers tell their random numbers apart.
        model : str
            The architecture.
        clients : mapping of number to sequence of client
            Whose knowledge counts for each, all of the architecture.
        inputs : (samples, *shape) tensor or None
            On which feature spaces can be compared; None: there are none, and no head is calibrated.
        server_round : int
        share : float
            Of the new head in what is returned; the rest is the old one.
        """
        if not self.calibrator or inputs is None or not self.server.task.scores_strata:
            return {}
        there = [number for number in models if knowledge.has_axes_of(clients[number])]
        if not there:
            return {}
        own = [models[number] for number in there]
        told = knowledge.under(self.server, own, model, [clients[number] for number in there], inputs)
        rngs = [torch_rng(self.server.seed, "virtual features", server_round, model, number) for number in there]
        heads = self.calibrator.calibrated(own, told, rngs)
        if share < 1.0:
            heads = [interpolate(before, after, share) for before, after in zip(own, heads, strict=True)]
        return dict(zip(there, heads, strict=True))
