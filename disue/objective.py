"""What clients minimise: the server's method decides it, and it travels with every request."""

from dataclasses import dataclass
from typing import Literal

LocalLoss = Literal["cross-entropy", "balanced"]


@dataclass(frozen=True)
class LocalObjective:
    """The local loss and its proximal term.

    Parameters
    ----------
    local_loss : {"cross-entropy", "balanced"}
        ``cross-entropy`` is the loss of the task: of classes, cross-entropy.
        ``balanced`` trains on ``logits + log p(y)`` with the client's own label shares p (balanced softmax, Ren et
        al. 2020; FedLC, Zhang et al. 2022), so that the logits themselves carry no prior.
    prox_mu : float
        Adds mu/2 ||w - w0||^2, with w0 where the client started (FedProx, Li et al. 2020, eq. 2).
    """

    local_loss: LocalLoss = "cross-entropy"
    prox_mu: float = 0.0


PLAIN = LocalObjective()
"""The loss of the task, and nothing else."""
