"""What clients are compared by, where that is made from their updates: by the server, or by clients for a sketch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from disue.models import State, flatten, head_of, subtract
from disue.signature import Signature

SUBSPACE_DIMENSIONS = 3
"""Leading directions of a client's data, in the signature `subspace`."""


class Update(Protocol):
    """A client's update, as far as it is looked at here."""

    @property
    def name(self) -> str:
        """The client."""

    @property
    def start(self) -> State:
        """What it started from."""

    @property
    def state(self) -> State:
        """What it came to."""

    @property
    def signature(self) -> Signature | None:
        """What it tells of its data."""


@dataclass(frozen=True)
class Trained:
    """An update as the client has it."""

    name: str
    start: State
    state: State
    signature: Signature | None


def last_layer(update: Update) -> Tensor:
    """Return the update of the linear head, relative to the client's own start, of unit length.

    The head's update tells the labels that a client holds (FedGroup, Duan et al. 2021; Sattler et al. 2020).
    """
    delta = subtract(update.state, update.start)
    return F.normalize(flatten(list(head_of(delta).values())), dim=0)


def whole_update(update: Update) -> Tensor:
    """Return the whole update, relative to the client's own start, with every parameter at unit length.

    So the first layer, which tells how inputs differ, counts as much as the last, which tells labels.
    """
    delta = subtract(update.state, update.start)
    parts = [F.normalize(tensor.reshape(-1), dim=0) for tensor in delta.values()]
    return flatten(parts) / math.sqrt(len(parts))


def prototypes(update: Update) -> Tensor:
    """Return the client's class prototypes under the universal expert that opened the round.

    Each is scaled by the square root of its class share. They tell labels, inputs and how the two belong
    together, whatever the client's weights; but rounds have different feature spaces.
    """
    if update.signature is None:
        raise ValueError(f"{update.name} sent no signature")
    return scaled_prototypes(update.signature)


def scaled_prototypes(signature: Signature) -> Tensor:
    """Return class prototypes, each scaled by the square root of its class share, as a vector of unit length."""
    counts = signature.label_counts
    scaled = signature.prototypes * (counts / counts.sum()).sqrt().unsqueeze(1)
    return F.normalize(scaled.reshape(-1), dim=0)


FROM_UPDATE: dict[str, Callable[[Update], Tensor]] = {
    "last-layer": last_layer,
    "update": whole_update,
    "prototypes": prototypes,
}
"""By the name of the signature."""
