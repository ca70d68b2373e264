"""What a model is here: a body that gives features, and a linear head."""

from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor, nn

from disue.models.state import State

HEAD = "head."
"""What the names of the head's parameters begin with."""


class Classifier(nn.Module):
    """A network in two parts.

    ``body``: (batch, *shape) -> (batch, features); ``head``: -> (batch, outputs), of a classifier logits.

    Attributes
    ----------
    statistics : sequence of str
        The buffers that travel: floats that change in training, as the running mean and variance of BatchNorm.
    constants : mapping of name to tensor
        What all other buffers were when the model was built. A model that is filled has them again.
    still : sequence of Module
        Normalisations whose parameters are not trained. They are not in training mode, in which they would go on to
        change.
    """

    statistics: Sequence[str] = ()
    constants: Mapping[str, Tensor] = {}
    still: Sequence[nn.Module] = ()

    @property
    def least_batch(self) -> int:
        """How many examples there must be in a batch that it is trained on."""
        return 2 if self.statistics else 1

    def __init__(self, body: nn.Module, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs, (batch, outputs)."""
        outputs: Tensor = self.head(self.body(x))
        return outputs

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but those that are still."""
        super().train(mode)
        for module in self.still:
            module.eval()
        return self


def head_of(state: State) -> State:
    """Return the head's parameters."""
    return {name: tensor for name, tensor in state.items() if name.startswith(HEAD)}


def num_parameters(state: State) -> int:
    """Return how many numbers a model has."""
    return sum(tensor.numel() for tensor in state.values())


def num_features(state: State) -> int:
    """Return how many features the body of a model gives to its head."""
    return state[f"{HEAD}weight"].shape[1]
