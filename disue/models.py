"""The networks. Each is a `Classifier`: a body that gives features, and a linear head.

GroupNorm, not BatchNorm: averaging and non-identical data break running statistics.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from disue.errors import DataError
from disue.registry import Registry, suggestion
from disue.seeding import derive_seed
from disue.task import Shape as Shape
from disue.torchvision_compat import torchvision

State = dict[str, Tensor]
"""A model's parameters by name, in the model's own order."""


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


LENET_SIDE = 28
MODELS: Registry[Callable[[Shape, int], Classifier]] = Registry("model")


def build_model(name: str, shape: Shape, num_classes: int, seed: int = 0) -> Classifier:
    """Build a model with initial weights drawn from ``seed``; the global generator is left alone.

    Parameters
    ----------
    name : str
        A name in `MODELS`.
    shape : tuple of int
        Channels, height, width of one input.
    num_classes : int
    seed : int
        The run seed.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    build = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model"))  # the CPU's alone, which is forked
        return build(shape, num_classes)


class OtherParametersError(ValueError):
    """A state is not one of the model that it is said to be of: the file was changed, or the model's code."""


def named_model(name: str) -> Callable[[Shape, int], Classifier]:
    """Return what builds the model that a file of a run names.

    Raises
    ------
    DataError
        If there is no such model here: the file is not to blame.
    """
    if name not in MODELS:
        near = suggestion(name, list(MODELS))
        raise DataError(
            f"the run has a model '{name}', which is not registered here{near}; register it in disue.models.MODELS, as "
            "where the run was made"
        )
    return MODELS[name]


def filled_model(name: str, shape: Shape, num_classes: int, state: State) -> Classifier:
    """Return a model that has the tensors of a state, which may come from anywhere, as its parameters.

    Nothing else is allocated: what is not as large as such a model's parameters is refused before.

    Raises
    ------
    DataError
        If there is no such model here.
    OtherParametersError
        If these are not the parameters of such a model.
    """
    with torch.device("meta"):
        model = named_model(name)(shape, num_classes)
    if not _alike(state, model.state_dict()):
        raise OtherParametersError(f"its parameters are not those of model '{name}' as it is here")
    if any(True for _ in model.buffers()):  # constants, which no state has
        model = build_model(name, shape, num_classes)
    model.load_state_dict(state, assign=True)
    return model


@MODELS.register("mlp")
def _mlp(shape: Shape, num_classes: int) -> Classifier:
    channels, height, width = shape
    body = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
    )
    return Classifier(body, 64, num_classes)


@MODELS.register("cnn")
def _cnn(shape: Shape, num_classes: int) -> Classifier:
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
    return Classifier(body, 64, num_classes)


@MODELS.register("lenet")
def _lenet(shape: Shape, num_classes: int) -> Classifier:
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
    return Classifier(body, 84, num_classes)


@MODELS.register("resnet18")
def _resnet18(shape: Shape, num_classes: int) -> Classifier:
    """torchvision's ResNet-18 with GroupNorm and the stem for small images (He et al. 2016, section 4.2)."""
    body = torchvision().models.resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels))
    body.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return Classifier(body, 512, num_classes)


@torch.no_grad()
def fill(model: nn.Module, state: State) -> None:
    """Copy a state into the model's parameters.

    Raises
    ------
    ValueError
        If these are not the parameters of such a model.
    """
    parameters = model.state_dict()
    if not _alike(state, parameters):
        raise ValueError(f"these are not the parameters of such a {type(model).__name__}")
    for name, tensor in parameters.items():
        tensor.copy_(state[name])


def _alike(state: State, like: State) -> bool:
    """Return whether names, shapes and types are the same."""
    return state.keys() == like.keys() and all(
        (tensor.shape, tensor.dtype) == (like[name].shape, like[name].dtype) for name, tensor in state.items()
    )


def get_state(model: nn.Module) -> State:
    """Return a copy of the model's parameters on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def subtract(state: State, start: State) -> State:
    """Return ``state - start``, parameter by parameter."""
    return {name: state[name] - start[name] for name in state}


def interpolate(first: State, second: State, share: float) -> State:
    """Return ``(1 - share) * first + share * second``."""
    return {name: torch.lerp(first[name], second[name], share) for name in first}


def same_model(first: State, second: State) -> bool:
    """Return whether two models have the same parameters, bit for bit."""
    return first is second or (
        first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    )


def flatten(states: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in states])
