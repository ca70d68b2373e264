"""Models by their names, with initial weights, or with parameters that are given."""

from collections.abc import Callable

import torch

from disue.errors import DataError
from disue.models.classifier import Classifier
from disue.models.state import State, alike
from disue.registry import Registry, suggestion
from disue.seeding import derive_seed
from disue.tasks import Shape

MODELS: Registry[Callable[[Shape, int], Classifier]] = Registry("model")
"""Name -> function from the shape of an input and the number of outputs to a model with fresh weights."""


def build_model(name: str, shape: Shape, num_outputs: int, seed: int = 0) -> Classifier:
    """Build a model with initial weights drawn from ``seed``; the global generator is left alone.

    Parameters
    ----------
    name : str
        A name in `MODELS`.
    shape : tuple of int
        Of one input.
    num_outputs : int
        Of a classifier, one for each class.
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
        return build(shape, num_outputs)


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


def filled_model(name: str, shape: Shape, num_outputs: int, state: State) -> Classifier:
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
        model = named_model(name)(shape, num_outputs)
    if not alike(state, model.state_dict()):
        raise OtherParametersError(f"its parameters are not those of model '{name}' as it is here")
    if any(True for _ in model.buffers()):  # constants, which no state has
        model = build_model(name, shape, num_outputs)
    model.load_state_dict(state, assign=True)
    return model
