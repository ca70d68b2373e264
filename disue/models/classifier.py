"""What a model is here: a body that gives features, and a linear head."""

from torch import Tensor, nn

from disue.models.state import State

HEAD = "head."
"""What the names of the head's parameters begin with."""


class Classifier(nn.Module):
    """A network in two parts.

    ``body``: (batch, *shape) -> (batch, features); ``head``: -> (batch, outputs), of a classifier logits.
    """

    def __init__(self, body: nn.Module, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs, (batch, outputs)."""
        outputs: Tensor = self.head(self.body(x))
        return outputs


def head_of(state: State) -> State:
    """Return the head's parameters."""
    return {name: tensor for name, tensor in state.items() if name.startswith(HEAD)}


def num_parameters(state: State) -> int:
    """Return how many numbers a model has."""
    return sum(tensor.numel() for tensor in state.values())


def num_features(state: State) -> int:
    """Return how many features the body of a model gives to its head."""
    return state[f"{HEAD}weight"].shape[1]
