"""What a model must be like to be trained, averaged, distilled, kept and read again: checked beforehand."""

import re
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from disue.errors import ConfigError, one_line
from disue.models import MODELS, Build, Classifier, Shape, UnfitNetworkError, build_model, filled_model, get_state

NAME = r"[A-Za-z0-9][\w.-]{0,63}"
"""Of a model: files and columns are called by it."""
ALONE = 1e-3
"""Outputs of an example alone may differ so much, relative to the largest, from those in a batch: by rounding."""


def check_networks(names: Iterable[str], shape: Shape, num_outputs: int, noisy: bool = False) -> None:
    """Raise `ConfigError` for the first of these models that no run could train; one line says why.

    Parameters
    ----------
    names : iterable of str
        Names in `MODELS`.
    shape : tuple of int
        Of one input.
    num_outputs : int
    noisy : bool (default: False)
        Whether noise is added to what clients send.
    """
    for name in sorted(set(names)):
        if wrong := _wrong_with(name, MODELS[name], shape, num_outputs):
            raise ConfigError(f"model: '{name}' {wrong}")
        if noisy and (statistics := build_model(name, shape, num_outputs).statistics):
            raise ConfigError(
                f"model: '{name}' has '{statistics[0]}', and noise could make a variance negative; with privacy=dp use "
                "GroupNorm in place of BatchNorm"
            )


@lru_cache(maxsize=32)
def _wrong_with(name: str, build: Build, shape: Shape, num_outputs: int) -> str:
    """Return why a model cannot be used; ``build`` is what the name stands for now."""
    if not re.fullmatch(NAME, name):
        return "cannot be called so; use letters, digits, '_', '.' and '-' in its name"
    try:
        model, twin = (build_model(name, shape, num_outputs) for _ in range(2))
    except UnfitNetworkError as error:
        return str(error)
    except Exception as error:  # whatever a person's own code may raise
        return f"cannot be built for inputs {_sizes(shape)} and {num_outputs} outputs ({_said(error)})"
    if wrong := _parts(model, num_outputs) or _tensors(model):
        return wrong
    if any(not torch.equal(tensor, twin.state_dict()[key]) for key, tensor in model.state_dict().items()):
        return "starts from other weights each time it is built; draw them from torch's own generator"
    try:
        return _behaviour(name, model, shape, num_outputs)
    except Exception as error:
        return f"cannot be trained on inputs {_sizes(shape)} ({_said(error)})"


def _parts(model: Classifier, num_outputs: int) -> str:
    """Return what is wrong with body and head."""
    head = model.head
    if not isinstance(head, nn.Linear):
        return f"has a head that is a {type(head).__name__}; use a torch.nn.Linear"
    if head.out_features != num_outputs:
        return f"has a head of {head.out_features} outputs; the task has {num_outputs}"
    return ""


def _tensors(model: Classifier) -> str:
    """Return which parameter or buffer cannot be averaged, sent or kept as those of ours are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if not name.startswith(("body.", "head.")):
            return f"has the parameter '{name}' outside of 'body' and 'head'; move it into one of them"
        if not bool(torch.isfinite(parameter).all()):
            return f"has the parameter '{name}' with initial values that are not finite"
        if not parameter.requires_grad:
            if name.startswith("head."):
                return f"has the parameter '{name}' with requires_grad=False; the last layer must be trained"
        elif parameter.dtype != torch.float32:
            return f"has the parameter '{name}' of type {parameter.dtype}; use torch.float32"
    for name, parameter in parameters.items():
        if name.startswith("body.") and any(parameter is own for own in model.head.parameters()):
            return f"has the weight of its last layer under the name '{name}', too; give that layer its own"
    for name in model.statistics:
        if model.get_buffer(name).dtype != torch.float32:
            return f"has the buffer '{name}' of type {model.get_buffer(name).dtype}; use torch.float32"
    buffers = dict(model.named_buffers(remove_duplicate=False))
    if other := [name for name in model.state_dict() if name not in parameters and name not in buffers]:
        return f"keeps '{other[0]}', which is neither a parameter nor a buffer; only these are read again"
    return ""


def _behaviour(name: str, model: Classifier, shape: Shape, num_outputs: int) -> str:
    """Return what is wrong with what the model computes, in training and when it is read from a file."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, features = model.eval()(x), model.body(x)
        if tuple(logits.shape) != (3, num_outputs):
            return f"gives outputs {_sizes(logits.shape)} for 3 inputs; {_sizes((3, num_outputs))} is expected"
        if tuple(features.shape) != (3, model.head.in_features):
            return (
                f"has a body that gives features {_sizes(features.shape)} for 3 inputs; "
                f"{_sizes((3, model.head.in_features))} is expected"
            )
        if not bool(torch.isfinite(logits).all()):
            return "gives outputs that are not finite before it is trained"
        alone = torch.cat([model(one) for one in x.split(1)])
        if not _alike(alone, logits):
            return "computes an example by the others of its batch, not only in training; use GroupNorm"
    with torch.random.fork_rng(devices=[]):
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(model.train()(x).square().sum(), own, materialize_grads=True)
    with torch.no_grad():
        after = model.eval()(x)
        again = filled_model(name, shape, num_outputs, get_state(model), seed=0).eval()
        if not _alike(again(x), after):
            return "computes something else when its parameters are read again; keep all that it uses in parameters"
    return ""


def _alike(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= ALONE * second.abs().max().clamp(min=1.0))


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
