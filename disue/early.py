"""Features of an early layer of a model that nobody has trained.

Random layers of a network keep much of what tells inputs apart (random features, Rahimi and Recht, NeurIPS 2007), and
of what a trained one learns to forget: how an image is rotated, say. All clients have them alike, in all rounds, so
that statistics of them are told once, and added up exactly. A linear classifier in closed form on fixed features is a
strong one where clients' data differ in kind (Fed3R, Fanì et al., "Accelerating Heterogeneous Federated Learning with
Closed-form Classifiers", ICML 2024).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disue.covariance import LEAST_NUMBERS, projected
from disue.metrics import predict_logits
from disue.models import Classifier


class EarlyLayers(nn.Module):
    """The body of a model without its last layer that has parameters; the whole body, if it is no sequence of layers.

    (batch, *shape) -> (batch, numbers), each example's of unit length.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        layers = list(body) if isinstance(body, nn.Sequential) else [body]
        learning = [i for i, layer in enumerate(layers) if any(True for _ in layer.parameters())]
        self.layers = nn.Sequential(*(layers[: learning[-1]] if len(layers) > 1 and learning else layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        features: Tensor = self.layers(x)
        return F.normalize(features.flatten(start_dim=1), dim=1)


def early_features(initial: Classifier, x: Tensor, device: torch.device, most: int) -> Tensor:
    """Return early features of inputs, (samples, at most ``most``): themselves, or a projection of more of them.

    Parameters
    ----------
    initial : Classifier
        The run's initial model.
    x : (samples, *shape) tensor
    device : torch.device
    most : int
        See `num_early`.
    """
    return projected(predict_logits(EarlyLayers(initial.body), x, device), most)


def num_early(wanted: int, num_strata: int, num_parameters: int) -> int:
    """Return how many early features there are at most: as many as a tenth of the model has room for in means.

    Examples
    --------
    >>> num_early(512, 10, 107_000), num_early(512, 10, 17_000), num_early(64, 10, 10**6)
    (512, 256, 64)
    """
    return max(1, min(wanted, max(LEAST_NUMBERS, num_parameters // 10) // num_strata))
