"""Settings as they are given on a command line: ``key=value``."""

import tomllib
from typing import Any

from disue.errors import ConfigError


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` words as TOML values, where a bare word is a string.

    Examples
    --------
    >>> parse_assignments(["alpha=0.3", "dataset=digits", "prior-correction=false"])
    {'alpha': 0.3, 'dataset': 'digits', 'prior-correction': False}

    Raises
    ------
    ConfigError
        For a word without ``=``.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set: got '{assignment}'; expected key=value")
        values[key.strip()] = _toml_value(text.strip())
    return values


def _toml_value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):  # no TOML, or none that Python takes
        return text
    return value if isinstance(value, bool | int | float | str) else text
