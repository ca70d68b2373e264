"""What is fuzzed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from disue.errors import DisueError

LONGEST_LINE = 4000


@dataclass(frozen=True)
class Target:
    """Something that reads from outside.

    Attributes
    ----------
    name : str
    inputs : strategy
    feed : callable
        Reads one input; it may raise `DisueError`, and nothing else.
    weight : float
        Its share of all inputs, relative to the others'.
    """

    name: str
    inputs: SearchStrategy[Any]
    feed: Callable[[Any], object]
    weight: float = 1.0

    def try_out(self, value: Any) -> bool:
        """Feed it; return whether it was taken. What it says otherwise must be one line."""
        try:
            self.feed(value)
        except DisueError as error:
            said = str(error)
            assert said, "an error that says nothing"
            assert said.isprintable(), f"not one printable line: {said!r}"
            assert len(said) <= LONGEST_LINE, f"a line of {len(said)} letters: {said[:200]}"
            return False
        return True
