"""Optimisers by their functional forms in PyTorch, and the cosine schedule of a learning rate.

With the first optimizer object that is made, PyTorch imports all of its compiler. That takes a client's process as long
again as importing PyTorch, and longer than to distil.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import cos, pi
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

OptimizerName = Literal["sgd", "adam", "adamw"]


class Optimizer(Protocol):
    """Moves parameters."""

    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Move the parameters, in place, against their gradients, which have their shapes."""


class Sgd:
    """The steps of `torch.optim.SGD`, bit for bit.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    momentum : float (default: 0.0)
    weight_decay : float (default: 0.0)
    """

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._momenta: list[Tensor | None] = [None] * len(self.parameters)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """See `Optimizer`."""
        sgd(
            list(self.parameters),
            list(gradients),
            self._momenta,
            foreach=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class Adam:
    """The steps of `torch.optim.Adam`, or of `torch.optim.AdamW`, with their default settings, bit for bit.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
    weight_decay : float (default: 0.0)
    decoupled : bool (default: False)
        Decay weights beside the step, as AdamW does, and not by the gradient.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1. Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float = 0.0, decoupled: bool = False) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self._function: Callable[..., None] = adamw if decoupled else adam
        self._steps = [torch.zeros(()) for _ in self.parameters]
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """See `Optimizer`."""
        self._function(
            list(self.parameters),
            list(gradients),
            list(self._means),
            list(self._squares),
            [],
            list(self._steps),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on, beside the parameters: lists of tensors, one for each parameter."""
        return {"steps": self._steps, "means": self._means, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state, on the device of the parameters; raise ValueError if it is of fewer or more."""
        for name, tensors in self.state_dict().items():
            for own, saved in zip(tensors, state[name], strict=True):
                own.copy_(saved)


def make_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], momentum: float, weight_decay: float
) -> Optimizer:
    """Return an optimiser by its name; only ``sgd`` has a momentum that can be chosen."""
    if name == "sgd":
        return Sgd(parameters, momentum, weight_decay)
    return Adam(parameters, weight_decay, decoupled=name == "adamw")


def clipped(gradients: Sequence[Tensor], most: float) -> list[Tensor]:
    """Return gradients that are no longer together than so much, as `torch.nn.utils.clip_grad_norm_` makes them.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    share = (most / (length + 1e-6)).clamp(max=1.0)
    return [gradient * share for gradient in gradients]


def cosine(learning_rate: float, steps: int) -> Iterator[float]:
    """Yield the learning rates of so many steps as `torch.optim.lr_scheduler.CosineAnnealingLR` has them.

    From the first, the one given, down towards 0 (Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts); each is
    made of the one before, as there, for the same bits.
    """
    for step in range(1, steps + 1):
        yield learning_rate
        learning_rate *= (1.0 + cos(pi * step / steps)) / (1.0 + cos(pi * (step - 1) / steps))
