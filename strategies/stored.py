"""Which records a checkpoint may hold: a class says so beside its definition."""

from typing import Any, TypeVar

T = TypeVar("T", bound=type)

STORED: dict[str, Any] = {}
"""Name -> class. A checkpoint names a record by its class's name."""


def stored(kind: T) -> T:
    """Let checkpoints hold records of a class: a dataclass or a named tuple, of values that a checkpoint may hold.

    Raises
    ------
    ValueError
        If another class of this name is stored already.
    """
    name = kind.__name__
    if name in STORED:
        raise ValueError(f"'{name}' is stored already, as {STORED[name].__module__}.{name}; give it another name")
    STORED[name] = kind
    return kind
