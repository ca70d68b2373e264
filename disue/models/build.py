"""Models by their names, with initial weights, or with parameters that are given."""

import torch

from disue.errors import DataError
from disue.models.classifier import Classifier
from disue.models.state import State, alike, fill, travelling
from disue.models.wrap import Build, UnfitNetworkError, as_classifier
from disue.registry import Registry, suggestion
from disue.seeding import derive_seed
from disue.tasks import Shape

MODELS: Registry[Build] = Registry("model")
"""Name -> function from the shape of an input and the number of outputs to a network with fresh weights."""


def build_model(name: str, shape: Shape, num_outputs: int, seed: int = 0) -> Classifier:
    """Build a model with initial weights drawn from ``seed``; the global generator is left alone.

    Any network will do whose outputs are those of a linear layer: see `as_classifier`.

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
    UnfitNetworkError
        If it has no head.
    """
    build = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model"))  # the CPU's alone, which is forked
        return as_classifier(build(shape, num_outputs), build, shape, num_outputs)


class OtherParametersError(ValueError):
    """A state is not one of the model that it is said to be of: the file was changed, or the model's code."""


def named_model(name: str) -> Build:
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


def filled_model(name: str, shape: Shape, num_outputs: int, state: State, seed: int) -> Classifier:
    """Return a model that has what a state has, which may come from anywhere; all else is what ``seed`` gives.

    Raises
    ------
    DataError
        If there is no such model here.
    OtherParametersError
        If these are not the parameters of such a model.
    """
    other = OtherParametersError(f"its parameters are not those of model '{name}' as it is here")
    if _surely_unlike(state, named_model(name), shape, num_outputs):
        raise other
    try:
        model = build_model(name, shape, num_outputs, seed)
    except UnfitNetworkError:
        raise other from None
    if not alike(state, travelling(model)):
        raise other
    fill(model, state)
    return model


def _surely_unlike(state: State, build: Build, shape: Shape, num_outputs: int) -> bool:
    """Return whether a state is not of such a network, as far as that can be said without memory for its parameters."""
    try:
        with torch.device("meta"):
            model = build(shape, num_outputs)
    except Exception:  # what a person's code looks up cannot be looked up there
        return False
    said = isinstance(model, Classifier) and not any(True for _ in model.buffers())
    return said and not alike(state, travelling(model))
