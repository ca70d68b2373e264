"""Several messages of one kind as one, to and from a node that answers for several clients."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from disue.errors import WireError, quoted_value

KEY = "bundle"
Part = RecordDict | str
"""What one client is sent or sends; a text where it failed."""


def bundle(parts: Mapping[int, Part]) -> RecordDict:
    """Return one content of the contents by seat; a record that several have travels once."""
    content = RecordDict()
    numbers: dict[int, int] = {}
    entries: list[tuple[int, str, int]] = []
    for seat, part in parts.items():
        for name, record in part.items() if isinstance(part, RecordDict) else ():
            if id(record) not in numbers:
                numbers[id(record)] = len(numbers)
                content[f"record-{numbers[id(record)]}"] = record
            entries.append((seat, name, numbers[id(record)]))
    content[KEY] = ConfigRecord(
        {
            "seats": list(parts),
            "errors": [part if isinstance(part, str) else "" for part in parts.values()],
            "entry-seats": [seat for seat, _, _ in entries],
            "entry-names": [name for _, name, _ in entries],
            "entry-records": [number for _, _, number in entries],
        }
    )
    return content


def is_bundle(content: RecordDict) -> bool:
    """Return whether this is the content of several."""
    return KEY in content.config_records


def unbundle(content: RecordDict) -> dict[int, Part]:
    """Return the contents by seat; raise `WireError` if this is no well-formed bundle."""
    if not is_bundle(content):
        raise WireError("the message is not the bundle that was expected")
    table = content.config_records[KEY]
    seats, errors = _column(table, "seats", int), _column(table, "errors", str)
    owners, names = _column(table, "entry-seats", int), _column(table, "entry-names", str)
    numbers = _column(table, "entry-records", int)
    if len(seats) != len(errors) or not len(owners) == len(names) == len(numbers) or len(set(seats)) < len(seats):
        raise WireError("the columns of the bundle do not go together")
    parts: dict[int, Part] = {seat: error or RecordDict() for seat, error in zip(seats, errors, strict=True)}
    for seat, name, number in zip(owners, names, numbers, strict=True):
        part, record = parts.get(seat), content.get(f"record-{number}")
        if not isinstance(part, RecordDict) or record is None:
            raise WireError(f"the bundle has no record {number} for seat {seat}")
        part[name] = record
    return parts


def _column(table: ConfigRecord, key: str, kind: type) -> list[Any]:
    column = table.get(key)
    if not isinstance(column, list) or not all(type(value) is kind for value in column):
        raise WireError(f"the bundle's {key} are {quoted_value(column)}")
    return column
