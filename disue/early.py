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

from disue.covariance import LEAST_NUMBERS, MOST_FEATURES, projected
from disue.metrics import predict_logits
from disue.models import Classifier, State, num_features, num_parameters


class EarlyLayers(nn.Module):
    """The body of a model without its last layer that has parameters.

    The whole body, if it is no sequence of layers, or has one layer with parameters only: the inputs themselves are no
    features. (batch, *shape) -> (batch, numbers), each example's of unit length.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        layers = list(body) if isinstance(body, nn.Sequential) else [body]
        learning = [i for i, layer in enumerate(layers) if any(True for _ in layer.parameters())]
        self.layers = nn.Sequential(*(layers[: learning[-1]] if len(learning) > 1 else layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        features: Tensor = self.layers(x)
        return F.normalize(features.flatten(start_dim=1), dim=1)


class _Projected(nn.Module):
    """Layers, and the projection of each batch of what they give: of all inputs together it may be more than fits."""

    def __init__(self, layers: EarlyLayers, most: int) -> None:
        super().__init__()
        self.layers, self.most = layers, most

    def forward(self, x: Tensor) -> Tensor:
        """Return the projections, on the CPU."""
        features: Tensor = self.layers(x)
        return projected(features.cpu(), self.most)


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

    Returns
    -------
    (samples, features) tensor
        None of them is longer than 1: each example's are of unit length before they are projected.
    """
    return predict_logits(_Projected(EarlyLayers(initial.body), most), x, device)


def num_early(wanted: int, num_strata: int, initial: State) -> int:
    """Return how many early features there are at most.

    As many as a tenth of the model, or `LEAST_NUMBERS`, has room for in means of all strata, and at least as many as
    samples are told apart by under other models: so many means come with each update.
    """
    room = max(LEAST_NUMBERS, num_parameters(initial) // 10) // num_strata
    return min(wanted, max(room, min(num_features(initial), MOST_FEATURES)))
