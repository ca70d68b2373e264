"""One client's contribution to a round, as the parts of a strategy see it: tensors, no messages."""

from dataclasses import dataclass

from torch import Tensor

from disue.models import State
from disue.signature import Signature


@dataclass(frozen=True)
class ClientUpdate:
    """A trained model, where it started from, and how much data it stands for.

    ``choice`` is the candidate that the client found best, where it was given candidates. ``train_loss`` is the mean
    over the last epoch, and ``steps`` counts those of the optimiser. ``clients`` is how many stand behind it: of more
    than one it is the mean of their models, what they told of their data together, and the sum of their steps. Where
    the server gets no more than such sums, a single client's update is a ``sketch`` of it, (1, dimension), at most.
    """

    name: str
    start: State
    state: State
    num_examples: int
    signature: Signature | None = None
    choice: int | None = None
    train_loss: float = float("nan")
    steps: int = 0
    clients: int = 1
    sketch: Tensor | None = None
