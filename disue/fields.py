"""What the fields of a message may be, and what they can do: declared with the record, and checked here.

A record is a frozen dataclass. The annotation of each field that comes from outside holds a `Field`: where it is in the
message, its type and range, and its effect on the run. `disue.wire.reading` refuses what is out of range by name, and
``docs/INPUT.md`` lists all fields.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

import torch
from torch import Tensor

from disue.errors import WireError, quoted_value
from disue.naming import LONGEST_NAME, normal_name

MOST_EXAMPLES = 10**12
"""Examples of one client."""
MOST_STEPS = 10**12
"""Optimiser steps of one client in one round."""
LARGEST_LOSS = 1e9
"""Nats. A model that diverged may have a large loss; sums of this one are still exact enough to be read."""
LARGEST_FEATURE = 1e6
"""Absolute value in a mean of features, or in a signature."""
LARGEST_COVARIANCE = 1e12
"""Absolute value in a covariance of features."""
LARGEST_PARAMETER = 1e6
"""Absolute value of a parameter of a model."""


@dataclass(frozen=True)
class Field:
    """A field of a message.

    Attributes
    ----------
    effect : str
        What the value does on the other side, and what bounds that.
    record : str
        The record of the message that it is in.
    key : str
        What it is called there; empty: as the attribute.
    """

    effect: str
    record: str = "metrics"
    key: str = ""

    @property
    def allowed(self) -> str:
        """What a value must be."""
        raise NotImplementedError

    def check(self, value: Any, key: str) -> Any:
        """Return the value as the record holds it; raise `WireError` if it is not allowed."""
        raise NotImplementedError

    def refuse(self, value: Any, key: str) -> WireError:
        """Return the error that names the field, the value and what is allowed."""
        return WireError(f"{key} is {quoted_value(value)}; expected {self.allowed}")


@dataclass(frozen=True, kw_only=True)
class Whole(Field):
    """An integer from ``low`` to ``high``."""

    low: int = 0
    high: int

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"an integer from {self.low} to {_short(self.high)}"

    def check(self, value: Any, key: str) -> int:
        """Return the integer; raise `WireError` if it is none, too small or too large."""
        if type(value) is not int or not self.low <= value <= self.high:
            raise self.refuse(value, key)
        return value


@dataclass(frozen=True, kw_only=True)
class Real(Field):
    """A finite number from ``low`` to ``high``."""

    low: float = 0.0
    high: float

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"a number from {self.low:g} to {self.high:g}"

    def check(self, value: Any, key: str) -> float:
        """Return the number; raise `WireError` if it is none, not finite, too small or too large."""
        if not self.has(value):
            raise self.refuse(value, key)
        return float(value)

    def has(self, value: Any) -> bool:
        """Return whether this is a number of the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Reals(Field):
    """A list of finite numbers from ``low`` to ``high``, or a hair outside, which is rounding."""

    low: float = 0.0
    high: float
    most: int
    hair: float = 1e-6

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"up to {self.most} numbers from {self.low:g} to {self.high:g}"

    def check(self, value: Any, key: str) -> tuple[float, ...]:
        """Return the numbers; raise `WireError` if they are none, or one is out of range."""
        if not isinstance(value, list) or not 0 < len(value) <= self.most:
            raise self.refuse(value, key)
        one, near = (Real(self.effect, low=self.low - by, high=self.high + by) for by in (0.0, self.hair))
        for number in value:
            if not near.has(number):
                raise one.refuse(number, key)
        return tuple(map(float, value))


@dataclass(frozen=True, kw_only=True)
class Text(Field):
    """Printable text of up to ``longest`` letters; ``is_name``: of which other spellings in Unicode are the same."""

    longest: int = LONGEST_NAME
    is_name: bool = False

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"printable text of 1 to {self.longest} letters"

    def check(self, value: Any, key: str) -> str:
        """Return the text as names are compared; raise `WireError` if it is none, too long, or cannot be printed."""
        if not isinstance(value, str) or len(value) > 10 * self.longest:
            raise self.refuse(value, key)
        text = normal_name(value) if self.is_name else value
        if not 0 < len(text) <= self.longest or not text.isprintable():
            raise self.refuse(value, key)
        return text


@dataclass(frozen=True, kw_only=True)
class Texts(Field):
    """A list of different printable names."""

    longest: int = LONGEST_NAME
    most: int

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"1 to {self.most} different printable texts of 1 to {self.longest} letters"

    def check(self, value: Any, key: str) -> tuple[str, ...]:
        """Return the texts; raise `WireError` if they are none, too many, or one is not allowed."""
        if not isinstance(value, list) or not 0 < len(value) <= self.most:
            raise self.refuse(value, key)
        one = Text(self.effect, longest=self.longest, is_name=True)
        texts = tuple(one.check(own, key) for own in value)
        if len(set(texts)) < len(texts):
            raise self.refuse(value, key)
        return texts


@dataclass(frozen=True, kw_only=True)
class Arrays(Field):
    """A tensor, or all tensors of a model: float32, in magnitude no larger than ``high``; what uses it knows the shape.

    ``low``: no value is below it; None: ``-high``.
    """

    high: float
    low: float | None = None
    shape: str

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return f"{self.shape}, float32, values from {-self.high if self.low is None else self.low:g} to {self.high:g}"

    def check(self, value: Any, key: str) -> Tensor:
        """Return the tensor; raise `WireError` for another type, or a value that is not finite or out of range."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            raise WireError(f"{key} is {getattr(value, 'dtype', type(value).__name__)}; expected {self.allowed}")
        if value.numel() and not self.has_room_for(value):
            raise WireError(f"{key} has values that are not finite or out of range; expected {self.allowed}")
        return value

    def has_room_for(self, tensor: Tensor) -> bool:
        """Return whether all values are in the range; a look at both ends, which are NaN where one value is."""
        low, high = map(float, torch.aminmax(tensor))
        return (-self.high if self.low is None else self.low) <= low and high <= self.high


@dataclass(frozen=True, kw_only=True)
class Other(Field):
    """A field whose reader checks it against what was asked."""

    must_be: str

    @property
    def allowed(self) -> str:
        """What a value must be."""
        return self.must_be


@cache
def fields_of(kind: type) -> Mapping[str, tuple[Field, bool]]:
    """Return the fields of a record by attribute, and whether a message may lack it."""
    hints = get_type_hints(kind, include_extras=True)
    return dict(_declared(hints))


def _declared(hints: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Field, bool]]]:
    for name, hint in hints.items():
        for own in getattr(hint, "__metadata__", ()):
            if isinstance(own, Field):
                yield name, (own, type(None) in getattr(hint.__origin__, "__args__", ()))


def wire_name(attribute: str) -> str:
    """Return what an attribute of a record is called in a message."""
    return attribute.replace("_", "-")


def _short(number: int) -> str:
    """Return a number as a person writes it: powers of ten as such."""
    digits = str(number)
    return f"10^{len(digits) - 1}" if number >= 10**6 and digits.strip("0") == "1" else digits
