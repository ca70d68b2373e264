"""Models as records, and back."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from flwr.common.constant import SType
from torch import Tensor

from disue.errors import WireError
from disue.models import State
from disue.npy import decode_npy, encode_npy


def to_record(state: State) -> ArrayRecord:
    """Return what Flower makes of the tensors of a model, byte for byte; it takes several times as long over it."""
    record = ArrayRecord()
    for name, tensor in state.items():
        array = tensor.detach().cpu().numpy()
        record[name] = Array(_type_name(array.dtype), tuple(array.shape), SType.NUMPY, encode_npy(array))
    return record


@lru_cache(maxsize=32)  # numpy takes longer for it than for the bytes
def _type_name(dtype: np.dtype[Any]) -> str:
    return str(dtype)


class Records:
    """Makes one record of each model, however many messages carry it."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[State, ArrayRecord]] = {}

    def __call__(self, state: State) -> ArrayRecord:
        """Return the model's record; it must not be changed."""
        if id(state) not in self._made:
            self._made[id(state)] = state, to_record(state)  # the model is kept, so that its id stays its own
        return self._made[id(state)][1]


def read_state(message: Message, key: str) -> State:
    """Return a model; raise `WireError` if the message has none under this key, or one that cannot be decoded."""
    try:
        record = message.content.array_records[key]
    except KeyError:
        raise WireError(f"the message has no '{key}' record") from None
    try:
        return {name: _tensor(array) for name, array in record.items()}
    except (ValueError, TypeError) as error:
        raise WireError(f"the '{key}' record cannot be decoded ({error})") from None


def read_optional_state(message: Message, key: str) -> State | None:
    """Return a model, or None if the message has none under this key."""
    return read_state(message, key) if key in message.content.array_records else None


def _tensor(array: Array) -> Tensor:
    """Return an array as a tensor; raise ValueError, or TypeError for a type that torch has not."""
    if array.stype != SType.NUMPY:
        raise ValueError(f"it is written as '{array.stype}', not as '{SType.NUMPY}'")
    return torch.from_numpy(decode_npy(array.data))
