"""Adam by its functional form in PyTorch, and the cosine schedule of its learning rate.

With the first optimizer object that is made, PyTorch imports all of its compiler, which takes longer than to distil.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """The steps of `torch.optim.Adam` with its default settings, bit for bit.

    Parameters
    ----------
    parameters : iterable of nn.Parameter

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._steps = [torch.zeros(()) for _ in self.parameters]
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Iterable[Tensor], learning_rate: float) -> None:
        """Move the parameters, in place, against their gradients, which have their shapes."""
        adam(
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
            weight_decay=0.0,
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


def cosine(learning_rate: float, steps: int) -> Iterator[float]:
    """Yield the learning rates of so many steps as `torch.optim.lr_scheduler.CosineAnnealingLR` has them.

    From the first, the one given, down towards 0 (Loshchilov and Hutter, ICLR 2017, eq. 5, without restarts); each is
    made of the one before, as there, for the same bits.
    """
    for step in range(1, steps + 1):
        yield learning_rate
        learning_rate *= (1.0 + cos(pi * step / steps)) / (1.0 + cos(pi * (step - 1) / steps))
