"""Names: what a client is known by, the order names are taken in, and how they stand in a line of text."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from disue.errors import DataError

LONGEST_NAME = 100
"""Letters of the name of a client or of a class."""


def normal_name(name: str) -> str:
    """Return the name of a class or a client in Unicode's composed form (NFC).

    Systems write the same letters as different code points: an umlaut may be one, or a vowel and two dots. Every name
    passes through here before it is compared, whatever it comes from.
    """
    return unicodedata.normalize("NFC", name)


def client_name(node_config: Mapping[str, object]) -> str:
    """Return the stable name of a client from its node config: ``name``, or its ``partition-id``.

    Raises
    ------
    DataError
        If the node config has neither.
    """
    if name := node_config.get("name"):
        return normal_name(str(name))
    if "partition-id" in node_config:
        return f"client-{node_config['partition-id']}"
    raise DataError("the node config has neither 'name' nor 'partition-id'; start the node with --node-config")


def by_name(names: Iterable[str]) -> list[str]:
    """Sort names so that ``client-2`` comes before ``client-10``.

    Examples
    --------
    >>> by_name(["client-10", "client-2", "ward"])
    ['client-2', 'client-10', 'ward']
    """
    return sorted(
        names, key=lambda name: [_number(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
    )


def _number(digits: str) -> tuple[int, str]:
    """Return what numbers of any length are sorted by; Python converts none of more than 4300 digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def quoted(names: Sequence[str], most: int = 20) -> str:
    """Return names for a line of text; of very many only the first."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
