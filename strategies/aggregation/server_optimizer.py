"""A step of the server towards the clients' average, in place of the average itself.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: the change from the model of the round before
to the average is taken for a gradient. What an optimiser remembers goes in and comes out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Settings
from disue.models import State, trained
from strategies.stored import stored


class ServerStepSettings(Settings):
    """The server's step."""

    server_learning_rate: float = Field(
        0.0,
        ge=0.0,
        le=1e3,
        description="learning rate of the server in fedavgm, fedadam and scaffold; 0: the method's own, 0.03 for "
        "fedadam, else 1",
    )


class ServerMomentumSettings(ServerStepSettings):
    """The server's momentum."""

    server_momentum: float = Field(
        0.9, ge=0.0, lt=1.0, description="share of the rounds before in the server's step, for fedavgm and fedadam"
    )


@stored
@dataclass(frozen=True)
class ServerOptimizerState:
    """The running mean of the changes, and of their squares; empty before the first."""

    means: State = field(default_factory=dict)
    squares: State = field(default_factory=dict)


SquareRule = Callable[[Tensor, Tensor, float], Tensor]
"""From the squares so far, the change and its decay to the squares now."""


def adam(squares: Tensor, change: Tensor, decay: float) -> Tensor:
    """Return a running mean of the squared changes (FedAdam)."""
    return decay * squares + (1.0 - decay) * change.square()


def yogi(squares: Tensor, change: Tensor, decay: float) -> Tensor:
    """Return the squares, which move towards the squared change by no more than its size (FedYogi)."""
    return squares - (1.0 - decay) * change.square() * torch.sign(squares - change.square())


def adagrad(squares: Tensor, change: Tensor, decay: float) -> Tensor:
    """Return the sum of the squared changes (FedAdagrad)."""
    return squares + change.square()


@dataclass(frozen=True)
class ServerOptimizer:
    """Steps from model to model.

    Parameters
    ----------
    rule : callable
        `adam`, `yogi` or `adagrad`.
    learning_rate : float (default: 0.1)
    momentum : float (default: 0.9)
        Share of the past in the mean of the changes.
    decay : float (default: 0.99)
        Share of the past in that of their squares.
    adaptivity : float (default: 0.001)
        The squares begin with its square, and it is added to their root.
    """

    rule: SquareRule
    learning_rate: float = 0.1
    momentum: float = 0.9
    decay: float = 0.99
    adaptivity: float = 1e-3

    def step(self, state: ServerOptimizerState, before: State, average: State) -> tuple[State, ServerOptimizerState]:
        """Return the model after a step, and what is remembered.

        Parameters
        ----------
        state : ServerOptimizerState
            As it was returned last.
        before : State
            The model with which the round began.
        average : State
            Of the clients' models.
        """
        means, squares, model = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        for name, start in trained(before).items():
            change = average[name] - start
            first = torch.full_like(start, self.adaptivity**2)
            mean = (1.0 - self.momentum) * change
            means[name] = mean + self.momentum * state.means[name] if name in state.means else mean
            squares[name] = self.rule(state.squares.get(name, first), change, self.decay)
            model[name] = start + self.learning_rate * means[name] / (squares[name].sqrt() + self.adaptivity)
        return {name: model.get(name, average[name]) for name in before}, ServerOptimizerState(means, squares)
