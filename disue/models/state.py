"""The parameters of a model by name: copied, filled in, and computed with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""A model's parameters by name, in the model's own order."""


@torch.no_grad()
def fill(model: nn.Module, state: State) -> None:
    """Copy a state into the model's parameters.

    Raises
    ------
    ValueError
        If these are not the parameters of such a model.
    """
    parameters = model.state_dict()
    if not alike(state, parameters):
        raise ValueError(f"these are not the parameters of such a {type(model).__name__}")
    for name, tensor in parameters.items():
        tensor.copy_(state[name])


def alike(state: State, like: State) -> bool:
    """Return whether names, shapes and types are the same."""
    return state.keys() == like.keys() and all(
        (tensor.shape, tensor.dtype) == (like[name].shape, like[name].dtype) for name, tensor in state.items()
    )


def get_state(model: nn.Module) -> State:
    """Return a copy of the model's parameters on the CPU, in the layout of parameters that are read from a file."""
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    return {name: tensor.contiguous() for name, tensor in copies.items()}


def zeros_like(state: State) -> State:
    """Return zeros in the place of all parameters."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


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


def unflatten(vector: Tensor, like: State) -> State:
    """Return the parts of a vector in the shapes of a model's parameters, and of the vector's type; see `flatten`."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(tensor) for part, (name, tensor) in zip(parts, like.items(), strict=True)}


def flatten(states: Sequence[Tensor]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in states])
