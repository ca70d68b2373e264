"""The built-in networks.

GroupNorm, not BatchNorm: averaging and non-identical data break running statistics.
"""

import math

from torch import nn

from disue.models.build import MODELS
from disue.models.classifier import Classifier
from disue.tasks import Shape
from disue.torchvision_compat import torchvision

LENET_SIDE = 28


@MODELS.register("mlp")
def _mlp(shape: Shape, num_outputs: int) -> Classifier:
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
    )
    return Classifier(body, 64, num_outputs)


@MODELS.register("mlp-200")
def _mlp_200(shape: Shape, num_outputs: int) -> Classifier:
    """One hidden layer of 200, as Ghosh et al. 2020 (IFCA) have for rotated MNIST."""
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 200), nn.ReLU()), 200, num_outputs)


@MODELS.register("cnn")
def _cnn(shape: Shape, num_outputs: int) -> Classifier:
    channels, height, width = shape
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
    )
    return Classifier(body, 64, num_outputs)


@MODELS.register("lenet")
def _lenet(shape: Shape, num_outputs: int) -> Classifier:
    """LeNet-5 with ReLU and max-pooling (LeCun et al. 1998), 44,426 parameters for MNIST; smaller images are padded."""
    channels, height, width = shape
    rows, columns = max(0, LENET_SIDE - height), max(0, LENET_SIDE - width)
    body = nn.Sequential(
        nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)),
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    return Classifier(body, 84, num_outputs)


@MODELS.register("resnet18")
def _resnet18(shape: Shape, num_outputs: int) -> Classifier:
    """torchvision's ResNet-18 with GroupNorm and the stem for small images (He et al. 2016, section 4.2)."""
    body = torchvision().models.resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels))
    body.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return Classifier(body, 512, num_outputs)
