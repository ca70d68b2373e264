"""What a model is here: a body that gives features, and a linear head."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """A network in two parts.

    ``body``: (batch, channels, height, width) -> (batch, features); ``head``: -> (batch, classes) logits.
    """

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        logits: Tensor = self.head(self.body(x))
        return logits
