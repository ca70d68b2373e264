"""What clients are compared by: each signature turns one update into one vector of unit length or nearly so."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from disue.models import flatten, subtract
from disue.naming import by_name
from disue.registry import Registry
from disue.signature import Signature
from strategies.updates import ClientUpdate

SIGNATURES: Registry[Callable[[ClientUpdate], Tensor]] = Registry("signature")


@SIGNATURES.register("last-layer")
def last_layer(update: ClientUpdate) -> Tensor:
    """Return the normalised update of the linear head, relative to the client's own start.

    The head's update tells the labels that a client holds (FedGroup, Duan et al. 2021; Sattler et al. 2020).
    """
    delta = subtract(update.state, update.start)
    head = flatten([tensor for name, tensor in delta.items() if name.startswith("head.")])
    return F.normalize(head, dim=0)


@SIGNATURES.register("update")
def whole_update(update: ClientUpdate) -> Tensor:
    """Return the whole update, relative to the client's own start, with every parameter at unit length.

    So the first layer, which tells how inputs differ, counts as much as the last, which tells labels.
    """
    delta = subtract(update.state, update.start)
    parts = [F.normalize(tensor.reshape(-1), dim=0) for tensor in delta.values()]
    return flatten(parts) / math.sqrt(len(parts))


@SIGNATURES.register("prototypes")
def prototypes(update: ClientUpdate) -> Tensor:
    """Return the client's class prototypes under the universal expert that opened the round.

    Each is scaled by the square root of its class share. They tell labels, inputs and how the two belong
    together, whatever the client's weights; but rounds have different feature spaces.
    """
    signature = _signature_of(update)
    return _scaled(signature.prototypes, signature.label_counts)


@SIGNATURES.register("initial-prototypes")
def initial_prototypes(update: ClientUpdate) -> Tensor:
    """Return the client's class prototypes under the initial model, scaled as in `prototypes`.

    The feature space is the same in all rounds: it does not forget how clients differ while the universal
    expert learns to see no difference, and clients from different rounds can be compared.
    """
    signature = _signature_of(update)
    return _scaled(signature.initial_prototypes, signature.label_counts)


def _signature_of(update: ClientUpdate) -> Signature:
    if update.signature is None:
        raise ValueError(f"{update.name} sent no signature")
    return update.signature


def _scaled(vectors: Tensor, counts: Tensor) -> Tensor:
    return F.normalize((vectors * (counts / counts.sum()).sqrt().unsqueeze(1)).reshape(-1), dim=0)


class SignatureBook:
    """The last known signature of every client, as a running mean over the rounds it took part in.

    Parameters
    ----------
    memory : float (default: 0.5)
        Share of the past in the running mean; 0 keeps the newest signature only.
    """

    def __init__(self, memory: float = 0.5) -> None:
        self.memory = memory
        self._vectors: dict[str, Tensor] = {}

    def enter(self, name: str, vector: Tensor) -> None:
        """Take in a client's signature of this round."""
        known = self._vectors.get(name)
        self._vectors[name] = vector if known is None else torch.lerp(vector, known, self.memory)

    @property
    def names(self) -> list[str]:
        """Clients with a known signature, sorted."""
        return by_name(self._vectors)

    def embedding(self) -> NDArray[np.float64]:
        """Return coordinates, (clients, at most clients), in which all distances and angles are kept.

        They come from the exact Gram matrix of the vectors (one matrix product), in the order of `names`.
        """
        return gram_embedding([self._vectors[name] for name in self.names])


def gram_embedding(vectors: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return points with the same inner products as ``vectors``, in as few dimensions as are needed."""
    stacked = F.normalize(torch.stack(list(vectors)).double(), dim=1)
    values, basis = np.linalg.eigh((stacked @ stacked.T).numpy())
    kept = values > 1e-9 * max(values[-1], 1e-300)
    kept[-1] = True  # vectors that are all zero are one point
    coordinates: NDArray[np.float64] = basis[:, kept] * np.sqrt(values[kept])
    return coordinates
