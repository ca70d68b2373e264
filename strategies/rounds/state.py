"""What the parts of a run remember from round to round: how to read it, and how to set it.

A part says in a class attribute ``stateful`` which of its attributes change as rounds go by. A value is one that a
checkpoint may hold, or a part in its turn.
"""

from collections.abc import Mapping
from typing import Any

from disue.errors import DataError

OTHER_VERSION = "was written by another version of disue"


def state_of(part: object) -> dict[str, Any]:
    """Return what is to be known of a part: the values of the attributes that it calls ``stateful``."""
    return {name: _state(getattr(part, name)) for name in _stateful(type(part))}


def _state(value: object) -> Any:
    return state_of(value) if _is_part(value) else value


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
        else:
            setattr(part, name, state[name])


def _is_part(value: object) -> bool:
    return hasattr(type(value), "stateful")


def _stateful(kind: type) -> list[str]:
    return list(getattr(kind, "stateful", ()))
