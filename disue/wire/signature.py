"""What a client tells of its data and features, as a record, and back."""

from flwr.app import ArrayRecord, Message

from disue.errors import WireError
from disue.fields import fields_of, wire_name
from disue.models import State, num_features
from disue.signature import Signature, SignatureParts
from disue.wire.arrays import read_state, to_record


def signature_record(signature: Signature) -> ArrayRecord:
    """Return the record ``signature``."""
    told = {wire_name(name): getattr(signature, name) for name in fields_of(Signature)}
    return to_record({name: tensor for name, tensor in told.items() if tensor is not None})


def read_signature(message: Message, asked: SignatureParts, model: State) -> Signature:
    """Read the record ``signature``, of features of a model; what was not asked for is left out.

    Raises
    ------
    WireError
        If a part is missing, has another shape or type than asked for, or a value is not allowed.
    """
    shape = asked.num_strata, num_features(model)
    return read_shaped(message, shape, asked.covariance_shape(model))


def read_shaped(message: Message, shape: tuple[int, int], expected: tuple[int, ...]) -> Signature:
    """Read the record ``signature`` with prototypes of one shape and a covariance of another; empty: it has none.

    Raises as `read_signature` does.
    """
    tensors = read_state(message, "signature")
    names = [name for name, (_, optional) in fields_of(Signature).items() if expected or not optional]
    try:
        told = {name: tensors[wire_name(name)] for name in names}
    except KeyError as error:
        raise WireError(f"the signature lacks {error}") from None
    if told["prototypes"].shape != shape:
        raise WireError(
            f"the signature's prototypes are {tuple(told['prototypes'].shape)}; expected {shape} (classes, features)"
        )
    try:
        signature = Signature(**told)
    except ValueError as error:
        raise WireError(str(error)) from None
    covariance = signature.covariance
    if covariance is not None and covariance.shape != expected:
        raise WireError(f"the signature's covariance is {tuple(covariance.shape)}; expected {expected}")
    for name in names:
        bounds, _ = fields_of(Signature)[name]
        bounds.check(told[name], wire_name(name))
    return signature
