"""Any network as a body and a head: where its outputs come from, and what of it changes in training."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from disue.models.classifier import Classifier
from disue.tasks import Shape

Build = Callable[[Shape, int], nn.Module]
"""From the shape of an input and the number of outputs to a network with fresh weights."""
ROWS = 3
"""Of inputs by which a network is looked at."""


class UnfitNetworkError(ValueError):
    """A network has no head that could be found; the message says what there is in its place, and what to do."""


class Logits(nn.Module):
    """A network whose output has its logits as an attribute, as those of the library `transformers` have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(x).logits
        return logits


class Split(Classifier):
    """A network of any kind, with its last linear layer as the head, and all else as the body.

    The body is the network itself, in which nothing is done in the place of that layer, so that its output are the
    layer's inputs. So ``body.`` and PyTorch's name are the name of a parameter.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.body = body
        self.head = head


def as_classifier(network: nn.Module, build: Build, shape: Shape, num_outputs: int) -> Classifier:
    """Return a network as a body and a head; of one that is a `Classifier` already the parts are its own.

    Parameters
    ----------
    network : nn.Module
    build : callable
        What made it, for inputs of this ``shape`` and so many outputs. What it makes is looked at once in a process.
    shape : tuple of int
        Of one input.
    num_outputs : int

    Raises
    ------
    UnfitNetworkError
        If no head is found.
    """
    if not isinstance(network, nn.Module):
        raise UnfitNetworkError(f"is a {type(network).__name__}; build a torch.nn.Module")
    if lazy := [name for name, parameter in network.named_parameters() if is_lazy(parameter)]:
        raise UnfitNetworkError(f"has the parameter '{lazy[0]}' whose shape is not known; give the layer its sizes")
    known = _known(build, shape, num_outputs)
    model = network if isinstance(network, Classifier) else _split(network, shape, known)
    model.still = [module for module in model.modules() if isinstance(module, _NormBase) and _is_still(module)]
    if any(True for _ in model.buffers()):
        if known.statistics is None:
            changing = changing_buffers(model, shape)
            known.statistics = tuple(name for name in changing if model.get_buffer(name).is_floating_point())
        model.statistics = known.statistics
        others = (item for item in model.named_buffers() if item[0] not in model.statistics)
        model.constants = {name: buffer.detach().clone() for name, buffer in others}
    return model


def _is_still(module: _NormBase) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and module.track_running_stats and not any(parameter.requires_grad for parameter in own)


def _split(network: nn.Module, shape: Shape, known: "_Known") -> Split:
    known.head = known.head or _found_head(network, shape)
    place, as_attribute = known.head
    head = network.get_submodule(place)
    assert isinstance(head, nn.Linear)
    if not place:
        return Split(nn.Identity(), head)
    network.set_submodule(place, nn.Identity())
    return Split(Logits(network) if as_attribute else network, head)


def _probe(shape: Shape) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0))


@dataclass
class _Known:
    """What was found of the networks that a function makes."""

    head: tuple[str, bool] | None = None
    statistics: tuple[str, ...] | None = None


@lru_cache(maxsize=32)
def _known(build: Build, shape: Shape, num_outputs: int) -> _Known:
    return _Known()


@torch.no_grad()
def _found_head(network: nn.Module, shape: Shape) -> tuple[str, bool]:
    """Return the name of the layer whose outputs are the network's, and whether these are an attribute of its output.

    The layer is the first module to finish whose output has both the memory and the values of the network's own: what
    works in place has the memory of the layer before, but not its values.
    """
    finished: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                finished.append((name, module, output, output.clone()))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in network.named_modules()]
    training = network.training
    try:
        output = network.eval()(_probe(shape))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise UnfitNetworkError(f"returns a {type(output).__name__}; return one tensor, or what has it as `logits`")
    there = [(name, module) for name, module, own, then in finished if _same(own, then, logits)]
    for last, layer in there:  # dropout, too, which does nothing as long as nobody trains
        if not isinstance(layer, nn.Linear | nn.Identity) and not any(True for _ in layer.children()):
            what = type(layer).__name__
            raise UnfitNetworkError(f"ends in a {what} ('{last}'); return logits, as a torch.nn.Linear gives them")
    name, head = there[0] if there else ("", network)
    if not isinstance(head, nn.Linear):
        raise UnfitNetworkError("computes on what its last layer gives; return the outputs of a torch.nn.Linear")
    if sum(other is head for _, other, _, _ in finished) > 1:
        raise UnfitNetworkError(f"calls its last layer '{name}' more than once; give its outputs a layer of their own")
    return name, not isinstance(output, Tensor)


def _same(output: Tensor, then: Tensor, logits: Tensor) -> bool:
    """Return whether an output, and the values that it had then, are those of the network."""
    there = output.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    return there and then.shape == logits.shape and torch.equal(then, logits)


def changing_buffers(model: nn.Module, shape: Shape) -> list[str]:
    """Return which buffers that are kept with the parameters change when the model computes in training mode."""
    twin = deepcopy(model)
    before = {name: buffer.clone() for name, buffer in twin.named_buffers() if name in twin.state_dict()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        twin.train()(_probe(shape))
    return [name for name, buffer in before.items() if not torch.equal(twin.get_buffer(name), buffer)]
