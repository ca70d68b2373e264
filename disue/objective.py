"""What clients minimise: the server's method decides it, and it travels with every request."""

from dataclasses import dataclass
from typing import Literal

LocalLoss = Literal["cross-entropy", "balanced"]


@dataclass(frozen=True)
class LocalObjective:
    """The local loss, its proximal term, and what of a model is trained when.

    Parameters
    ----------
    local_loss : {"cross-entropy", "balanced"}
        ``cross-entropy`` is the loss of the task: of classes, cross-entropy.
        ``balanced`` trains on ``logits + log p(y)`` with the client's own label shares p (balanced softmax, Ren et
        al. 2020; FedLC, Zhang et al. 2022), so that the logits themselves carry no prior.
    prox_mu : float
        Adds mu/2 ||w - w0||^2, with w0 where the client started (FedProx, Li et al. 2020, eq. 2).
    second_mu : float
        Where a client trains a second model, beside the one that it was sent to train: the weight of this term for the
        second model, with w0 where the first one started (Ditto, Li et al. 2021, algorithm 1).
    head_epochs : int
        So many epochs the head alone is trained, and the body alone after it; 0: both together (FedRep, Collins et al.
        2021, algorithm 1).
    """

    local_loss: LocalLoss = "cross-entropy"
    prox_mu: float = 0.0
    second_mu: float = 0.0
    head_epochs: int = 0


PLAIN = LocalObjective()
"""The loss of the task, and nothing else."""
