"""Models: the built-in networks, how any is built by its name, and the parameters that travel."""

from disue.models import networks as networks
from disue.models.build import MODELS, OtherParametersError, build_model, filled_model, named_model
from disue.models.classifier import HEAD, Classifier, head_of, num_features, num_parameters
from disue.models.state import State, fill, flatten, get_state, interpolate, same_model, subtract, unflatten, zeros_like
from disue.tasks import Shape

__all__ = [
    "HEAD",
    "MODELS",
    "Classifier",
    "OtherParametersError",
    "Shape",
    "State",
    "build_model",
    "fill",
    "filled_model",
    "flatten",
    "get_state",
    "head_of",
    "interpolate",
    "named_model",
    "num_features",
    "num_parameters",
    "same_model",
    "subtract",
    "unflatten",
    "zeros_like",
]
