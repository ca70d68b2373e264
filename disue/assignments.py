"""Settings as they are given on a command line: ``key=value``, and seeds."""

import re
import tomllib
from typing import Any

from disue.errors import ConfigError

MOST_COUNTED = 20
"""Seeds that a lone number may ask for; a larger one is more likely meant as the seed itself."""
MOST_SEEDS = 1000


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


def assignment(key: str, value: bool | int | float | str) -> str:
    """Return the word that `parse_assignments` reads so: a string without quotes where it is understood without.

    Examples
    --------
    >>> assignment("alpha", 0.3), assignment("report", True), assignment("dataset", "mnist"), assignment("classes", "7")
    ('alpha=0.3', 'report=true', 'dataset=mnist', 'classes="7"')
    """
    bare = f"{key}={value}"
    if isinstance(value, str) and parse_assignments([bare])[key] == value:
        return bare
    return f"{key}={toml_text(value)}"


def toml_text(value: bool | int | float | str) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or c in '"\\\x7f' else c for c in value)
        return f'"{escaped}"'
    return repr(value)


def parse_seeds(text: str) -> list[int]:
    """Return seeds that are given as a count from 0, as a list, as ranges, or as a list of both.

    Examples
    --------
    >>> parse_seeds("3"), parse_seeds("0-2"), parse_seeds("7,8"), parse_seeds("7,"), parse_seeds("100-102,7")
    ([0, 1, 2], [0, 1, 2], [7, 8], [7], [100, 101, 102, 7])

    Raises
    ------
    ConfigError
        If it is none of these, or a lone number above 20.
    """
    words = [word.strip() for word in text.split(",")]
    ranges = [_seed_range(word) for word in words if word]
    if not ranges or None in ranges:
        raise ConfigError(f"--seeds: got '{text}'; {SEEDS_ALLOWED}")
    if words[0].isdecimal() and len(words) == 1:
        count = int(words[0])
        if not 0 < count <= MOST_COUNTED:
            hint = f"; for the one seed {count} use '{count},'" if count else ""
            raise ConfigError(f"--seeds: got '{text}'{hint}; {SEEDS_ALLOWED}")
        return list(range(count))
    if sum(found.stop - found.start for found in ranges if found) > MOST_SEEDS:
        raise ConfigError(f"--seeds: got '{text}'; at most {MOST_SEEDS} seeds are taken")
    seeds = [seed for found in ranges for seed in found or ()]
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"--seeds: {twice} is given twice")
    return seeds


SEEDS_ALLOWED = f"expected a count from 1 to {MOST_COUNTED}, a list like 7,8,9 or a range like 0-2"


def _seed_range(word: str) -> range | None:
    """Return the seeds of a number or of a range; None: it is neither, or a number that no seed may be."""
    match = re.fullmatch(r"([0-9]{1,19})(?: *- *([0-9]{1,19}))?", word)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1) if first <= last < 2**63 else None
