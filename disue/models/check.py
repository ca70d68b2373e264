"""What a model must be like to be trained, averaged, distilled, kept and read again: checked beforehand."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from disue.errors import ConfigError, one_line
from disue.models import MODELS, Classifier, Shape, build_model, filled_model, get_state

NAME = r"[A-Za-z0-9][\w.-]{0,63}"
"""Of a model: files and columns are called by it."""
ALONE = 1e-3
"""Outputs of an example alone may differ so much, relative to the largest, from those in a batch: by rounding."""


def check_networks(names: Iterable[str], shape: Shape, num_outputs: int) -> None:
    """Raise `ConfigError` for the first of these models that no run could train; one line says why.

    Parameters
    ----------
    names : iterable of str
        Names in `MODELS`.
    shape : tuple of int
        Of one input.
    num_outputs : int
    """
    for name in sorted(set(names)):
        if wrong := _wrong_with(name, MODELS[name], shape, num_outputs):
            raise ConfigError(f"model: '{name}' {wrong}")


@lru_cache(maxsize=32)
def _wrong_with(name: str, build: Callable[[Shape, int], Classifier], shape: Shape, num_outputs: int) -> str:
    """Return why a model cannot be used; ``build`` is what the name stands for now."""
    if not re.fullmatch(NAME, name):
        return "cannot be called so; use letters, digits, '_', '.' and '-' in its name"
    try:
        model, twin = (build_model(name, shape, num_outputs) for _ in range(2))
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


def _parts(model: nn.Module, num_outputs: int) -> str:
    """Return what is wrong with body and head."""
    if not isinstance(model, nn.Module):
        return f"is a {type(model).__name__}; build a torch.nn.Module"
    for part in ("body", "head"):
        if not isinstance(getattr(model, part, None), nn.Module):
            return f"has no module '{part}'; build a disue.models.Classifier"
    head = model.head
    if not isinstance(head, nn.Linear) or head.bias is None:
        return f"has a head that is a {type(head).__name__}; use a torch.nn.Linear with a bias"
    if head.out_features != num_outputs:
        return f"has a head of {head.out_features} outputs; the task has {num_outputs}"
    return ""


def _tensors(model: nn.Module) -> str:
    """Return which parameter or buffer cannot be averaged, sent or kept as those of ours are."""
    for name, tensor in model.named_buffers():
        if name in model.state_dict():
            kind = str(tensor.dtype).removeprefix("torch.")
            return (
                f"has the buffer '{name}' ({kind}), and only parameters are trained and averaged; use layers without "
                "running statistics (GroupNorm in place of BatchNorm), and persistent=False for constants"
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for first, second in combinations(parameters, 2):
        if parameters[first] is parameters[second]:
            return f"has one parameter under two names, '{first}' and '{second}'; tied weights cannot be averaged"
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            return f"has the parameter '{name}' whose shape is not known; give the layer its sizes"
        if not parameter.requires_grad:
            return f"has the parameter '{name}' with requires_grad=False; all parameters must be trained"
        if parameter.dtype != torch.float32:
            return f"has the parameter '{name}' of type {parameter.dtype}; use torch.float32"
        if not name.startswith(("body.", "head.")):
            return f"has the parameter '{name}' outside of 'body' and 'head'; move it into one of them"
        if not bool(torch.isfinite(parameter).all()):
            return f"has the parameter '{name}' with initial values that are not finite"
    if other := [name for name in model.state_dict() if name not in parameters]:
        return f"keeps '{other[0]}', which is no parameter; only parameters are trained and averaged"
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
            return "computes an example by the others of its batch; use GroupNorm in place of BatchNorm"
    with torch.random.fork_rng(devices=[]):
        torch.autograd.grad(model.train()(x).square().sum(), list(model.parameters()), materialize_grads=True)
    with torch.no_grad():
        again = filled_model(name, shape, num_outputs, get_state(model)).eval()
        if not _alike(again(x), logits):
            return "computes something else when its parameters are read again; keep all that it uses in parameters"
    return ""


def _alike(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= ALONE * second.abs().max().clamp(min=1.0))


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
