"""What of a model travels: copied, filled in, and computed with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
"""What travels of a model, by name, in the model's own order: its trained parameters, each once, and its statistics."""
STATISTICS = "statistics."
"""What the names of statistics begin with: floats that are no parameters, and change in training. They are averaged,
and no optimiser may go on beyond an average of them: a variance would be negative."""

VARIANCE = "running_var"
"""What PyTorch calls a statistic that is never negative."""


@torch.no_grad()
def fill(model: nn.Module, state: State) -> None:
    """Copy a state into a model; what of it does not travel is again as it was when the model was built.

    Raises
    ------
    ValueError
        If this is not a state of such a model.
    """
    own = travelling(model)
    if not alike(state, own):
        raise ValueError(f"these are not the parameters of such a {type(model).__name__}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
    for name, tensor in getattr(model, "constants", {}).items():
        buffer = model.get_buffer(name)
        if buffer.shape == tensor.shape:
            buffer.copy_(tensor)


def travelling(model: nn.Module) -> State:
    """Return the very tensors of a model that travel."""
    statistics: Sequence[str] = getattr(model, "statistics", ())
    found: State = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
        elif name in statistics:
            found[STATISTICS + name] = tensor
    return found


def for_torch(state: State) -> State:
    """Return a state with the names that PyTorch has, as `torch.func.functional_call` takes it."""
    return {name.removeprefix(STATISTICS): tensor for name, tensor in state.items()}


def negative_variance(state: State) -> str:
    """Return the name of a variance that is negative somewhere; empty: there is none."""
    named = ((name, tensor) for name, tensor in state.items() if name.startswith(STATISTICS))
    return next((name for name, tensor in named if name.endswith(VARIANCE) and bool((tensor < 0).any())), "")


def with_statistics(state: State, of: State) -> State:
    """Return a state with the statistics of another."""
    return {name: of[name] if name.startswith(STATISTICS) else tensor for name, tensor in state.items()}


def trained(state: State) -> State:
    """Return a state without statistics."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(STATISTICS)}


def alike(state: State, like: State) -> bool:
    """Return whether names, shapes and types are the same."""
    return state.keys() == like.keys() and all(
        (tensor.shape, tensor.dtype) == (like[name].shape, like[name].dtype) for name, tensor in state.items()
    )


def get_state(model: nn.Module) -> State:
    """Return a copy of what travels of a model, on the CPU, in the layout of tensors that are read from a file."""
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in travelling(model).items()}
    return {name: tensor.contiguous() for name, tensor in copies.items()}


def zeros_like(state: State) -> State:
    """Return zeros in the place of all numbers."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def subtract(state: State, start: State) -> State:
    """Return ``state - start``, tensor by tensor."""
    return {name: state[name] - start[name] for name in state}


def interpolate(first: State, second: State, share: float) -> State:
    """Return ``(1 - share) * first + share * second``."""
    return {name: torch.lerp(first[name], second[name], share) for name in first}


def same_model(first: State, second: State) -> bool:
    """Return whether two states are the same, bit for bit."""
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
