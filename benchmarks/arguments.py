"""Types of the benchmarks' arguments, so that a bad value is one line of argparse."""

import argparse

from disue.assignments import parse_assignments, parse_seeds
from disue.errors import ConfigError


def seeds(text: str) -> list[int]:
    """Return the seeds of ``0-2``, ``7,8`` or ``3``; see `parse_seeds`."""
    try:
        return parse_seeds(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--seeds: ")) from None


def assignment(text: str) -> str:
    """Return a ``KEY=VALUE`` as it is, once it has been read."""
    try:
        parse_assignments([text])
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--set: ")) from None
    return text
