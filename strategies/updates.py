"""What a round's contributions are, as the parts of a strategy see them: tensors, no messages."""

from dataclasses import dataclass
from math import nan
from typing import Protocol

from torch import Tensor

from disue.models import State
from disue.signature import Signature


class Named(Protocol):
    """Something of one client, or of a group of clients."""

    @property
    def name(self) -> str:
        """The client, or one of the group."""


class Weighted(Named, Protocol):
    """A model, whose it is, and how many examples it stands for: all that an average needs."""

    @property
    def state(self) -> State:
        """The model."""

    @property
    def num_examples(self) -> int:
        """The weight in a mean."""


class Contribution(Weighted, Protocol):
    """A `ClientUpdate` or a `GroupSum`: what a method aggregates, whichever way it was collected."""

    @property
    def start(self) -> State:
        """What the clients behind it started from, on the mean."""

    @property
    def signature(self) -> Signature | None:
        """What the clients behind it told of their data; None: nothing was asked."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Who they are."""


@dataclass(frozen=True)
class WeightedModel:
    """A model with a weight of its own, as where every client counts once."""

    name: str
    state: State
    num_examples: int


@dataclass(frozen=True)
class SecondModel:
    """A model that a client trained beside the first: where it started from, and what it came to."""

    start: State
    state: State


@dataclass(frozen=True)
class ClientUpdate:
    """A trained model, where it started from, and how much data it stands for.

    ``choice`` is the candidate that the client found best, where it was given candidates. ``train_loss`` is the mean
    over the last epoch, and ``steps`` counts those of the optimiser. ``second`` is None where there was one model.
    ``digest`` tells the client's data from others that it had earlier; None: it does not say.
    """

    name: str
    start: State
    state: State
    num_examples: int
    signature: Signature | None = None
    choice: int | None = None
    train_loss: float = nan
    steps: int = 0
    second: SecondModel | None = None
    digest: str | None = None

    @property
    def clients(self) -> tuple[str, ...]:
        """The client."""
        return (self.name,)


@dataclass(frozen=True)
class ClientSketch:
    """All that the server sees of one client where it gets sums only.

    ``sketch``: (1, dimension), of the client's update; None where clients are not compared by updates. ``digest`` as in
    `ClientUpdate`.
    """

    name: str
    sketch: Tensor | None = None
    digest: str | None = None


@dataclass(frozen=True)
class GroupSum:
    """What the clients of one cluster contributed together, of which the server saw the sum only.

    ``name`` is the first of the ``clients`` that are in it. ``start`` is the mean of what they were sent to start from,
    each of them counted once, ``state`` the mean of their models, and ``signature`` what they told of their data
    together. ``steps`` is the sum of theirs.
    """

    name: str
    clients: tuple[str, ...]
    start: State
    state: State
    num_examples: int
    signature: Signature | None = None
    train_loss: float = nan
    steps: int = 0
