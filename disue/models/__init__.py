"""Models: the built-in networks, how any is built by its name, and the parameters that travel."""

from disue.models import networks as networks
from disue.models.build import MODELS, OtherParametersError, build_model, filled_model, named_model
from disue.models.classifier import HEAD, Classifier, head_of, num_features, num_parameters
from disue.models.state import (
    STATISTICS,
    State,
    fill,
    flatten,
    for_torch,
    get_state,
    interpolate,
    negative_variance,
    same_model,
    subtract,
    trained,
    travelling,
    unflatten,
    with_statistics,
    zeros_like,
)
from disue.models.wrap import Build, UnfitNetworkError
from disue.tasks import Shape

__all__ = [
    "HEAD",
    "MODELS",
    "STATISTICS",
    "Build",
    "Classifier",
    "OtherParametersError",
    "Shape",
    "State",
    "UnfitNetworkError",
    "build_model",
    "fill",
    "filled_model",
    "flatten",
    "for_torch",
    "get_state",
    "head_of",
    "interpolate",
    "named_model",
    "negative_variance",
    "num_features",
    "num_parameters",
    "same_model",
    "subtract",
    "trained",
    "travelling",
    "unflatten",
    "with_statistics",
    "zeros_like",
]
