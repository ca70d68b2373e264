"""What the parts of a run remember from round to round: how to read it, to set it, and to take a change back.

A part says in a class attribute ``stateful`` which of its attributes change as rounds go by; its base classes name
theirs. A value is a tensor, a number, a text, a collection of these, a network or an optimiser, or a part in its turn.
"""

import copy
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from disue.errors import DataError

OTHER_VERSION = "was written by another version of disue"


@runtime_checkable
class HasState(Protocol):
    """A network or an optimiser, as PyTorch's are."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return what is to be known of it."""

    def load_state_dict(self, state: Any, /) -> object:
        """Take it up."""


def state_of(part: object) -> dict[str, Any]:
    """Return what is to be known of a part: the values of the attributes that it and its bases call ``stateful``."""
    return {name: _state(getattr(part, name)) for name in _stateful(type(part))}


def _state(value: object) -> Any:
    if _is_part(value):
        return state_of(value)
    if isinstance(value, HasState):
        return dict(value.state_dict())
    return value


def restore(part: object, state: Mapping[str, Any]) -> None:
    """Give a part, made as it was made for the run that was saved, what is known of it.

    Raises
    ------
    DataError
        If the state is of another version.
    """
    names = _stateful(type(part))
    if set(state) != set(names):
        raise DataError(f"the checkpoint {OTHER_VERSION} ({type(part).__name__} has {names}, not {list(state)})")
    for name in names:
        value = getattr(part, name)
        if _is_part(value):
            restore(value, state[name])
        elif isinstance(value, HasState):
            value.load_state_dict(state[name])
        else:
            setattr(part, name, state[name])


class Snapshot:
    """The state of a part at one moment, which can be put back.

    Attributes become the same objects again, and collections have the same content again. So what is known by its
    identity stays known. Only networks and optimisers change tensors in place; these are copied.

    Parameters
    ----------
    part : object
    without : collection of objects
        Parts that are left as they are.
    """

    def __init__(self, part: object, without: tuple[object, ...] = ()) -> None:
        self._attributes: list[tuple[object, str, object]] = []
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._loadable: list[tuple[HasState, Any]] = []
        self._enter_part(part, without)

    def put_back(self) -> None:
        """Make everything as it was."""
        for part, name, value in self._attributes:
            if getattr(part, name) is not value:
                setattr(part, name, value)
        for collection, content in self._contents.values():
            if isinstance(collection, list):
                collection[:] = content
            else:
                collection.clear()
                collection.update(content)
        for loadable, state in self._loadable:
            loadable.load_state_dict(state)

    def _enter_part(self, part: object, without: tuple[object, ...]) -> None:
        for name in _stateful(type(part)):
            value = getattr(part, name)
            if any(value is other for other in without):
                continue
            self._attributes.append((part, name, value))
            if _is_part(value):
                self._enter_part(value, without)
            elif isinstance(value, HasState):
                self._loadable.append((value, copy.deepcopy(_detached(value.state_dict()))))
            else:
                self._enter(value)

    def _enter(self, value: object) -> None:
        if not isinstance(value, dict | list | set | tuple) or id(value) in self._contents:
            return
        if not isinstance(value, tuple):
            self._contents[id(value)] = value, copy.copy(value)
        for own in value.values() if isinstance(value, dict) else value:
            self._enter(own)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _detached(own) for key, own in value.items()}
    return [_detached(own) for own in value] if isinstance(value, list) else value


def _is_part(value: object) -> bool:
    return hasattr(type(value), "stateful")


def _stateful(kind: type) -> list[str]:
    return [name for base in reversed(kind.__mro__) for name in vars(base).get("stateful", ())]
