"""What one client may say in a field of its messages, and the client that says it."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import client_app.app
from disue.errors import WireError
from disue.fields import Arrays, Field, Other, Real, Reals, Text, Texts, Whole, fields_of, wire_name
from disue.wire.bundle import KEY as BUNDLE
from disue.wire.table import RECORDS
from disue_cli.engines.inline import FIRST_NODE_ID

MESSAGES: dict[str, tuple[str, ...]] = {
    "hello": ("query",),
    "describe": ("query.describe",),
    "train": ("train",),
    "train, `privacy=secure`": ("train",),
    "share, unmask": ("query.share", "query.unmask"),
    "mask": ("query.mask",),
    "compare": ("query.compare",),
    "features": ("query.features",),
    "early": ("query.early",),
    "evaluate": ("evaluate",),
}
"""Row of `RECORDS` -> message types of Flower."""
MODELS = ("arrays", "second")
"""Records that are a model, whose tensors are one field, ``*``."""
LONG = 10**6
HUGE = 2**63 - 1
NAN, INFINITE = float("nan"), float("inf")
DENORMAL = 5e-324
NUMBERS: tuple[Any, ...] = (0, -1, DENORMAL, 1.0, 1e38, 10**7, HUGE, NAN, INFINITE, [], [1.0] * LONG)
TEXTS: tuple[Any, ...] = ("", "nobody", "a" * LONG, "\0", [], ["a"] * LONG, 1, b"")
SAME_FORM = "zeros of the same lengths"
OTHERS = (*TEXTS, -1, HUGE, NAN, [-1], [HUGE], [0] * LONG, [b"a" * LONG], SAME_FORM)
ONE = "all in the first"
"""Of a tensor: the sum of its values in the first entry, and zeros."""
FILLS = (ONE, 0.0, -1.0, 1e-45, 1.0, 1e38, NAN, INFINITE)
SHAPES: tuple[tuple[int, ...], ...] = ((0,), (LONG,))
MISSING = "missing"
Place = tuple[str, str, str]
"""Message type, record and key."""


class Lie(NamedTuple):
    """What a client says, in all its messages of a kind in one of the modes.

    ``value`` is a number, a text or a list of them, `MISSING`, `SAME_FORM`, or for tensors a number to fill them with,
    a shape, or `ONE`.
    """

    kind: str
    record: str
    key: str
    value: Any
    mode: str = "plain"

    @property
    def place(self) -> Place:
        """The field."""
        return self.kind, self.record, self.key

    @property
    def said(self) -> str:
        """The value in a few letters."""
        return in_short(self.value)

    def __str__(self) -> str:
        return f"{self.mode}: {' '.join(self.place)} = {self.said}"


def in_short(value: Any) -> str:
    """Return a value in a few letters: of a long one the beginning and the length."""
    if isinstance(value, str | bytes | list) and len(value) > 25:
        return f"{repr(value[:1])[:12]}... ({len(value)})"
    said = repr(value)
    return said if len(said) < 100 else f"{said[:12]}... ({len(said)} letters)"


class LyingApp(ClientApp):
    """The real ClientApp, one of whose nodes lies.

    Parameters
    ----------
    liar : int
        Which node.
    lie : Lie or None
        None: it is honest.

    Attributes
    ----------
    seen : set of (str, str, str)
        The fields of all that the liar was about to send.
    """

    def __init__(self, liar: int, lie: Lie | None) -> None:
        super().__init__()
        self.liar = liar
        self.lie = lie
        self.seen: set[Place] = set()

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the client that the context tells."""
        reply = client_app.app.app(message, context)
        if context.node_id == FIRST_NODE_ID + self.liar and reply.has_content():
            kind = message.metadata.message_type
            self.seen |= {(kind, record, key) for record, key in _fields(reply.content)}
            if self.lie is not None and kind == self.lie.kind:
                tell(reply.content, self.lie)
        return reply


def _fields(content: RecordDict) -> Iterator[tuple[str, str]]:
    """Yield the record and key of all fields; the tensors of a model are one field, ``*``.

    Of what several clients on one node say together these are the fields of the table that tells them apart.
    """
    for record, values in content.items():
        if BUNDLE not in content or record == BUNDLE:
            yield from ((record, "*" if record in MODELS else key) for key in values)


def tell(content: RecordDict, lie: Lie) -> None:
    """Put a lie into the content of a reply."""
    record: Any = content[lie.record]
    for key in list(record) if lie.key == "*" else [lie.key]:
        if lie.value == MISSING:
            record.pop(key, None)
        elif lie.value == SAME_FORM:
            record[key] = _zeros(record[key])
        elif not isinstance(record, ArrayRecord):
            record[key] = lie.value
        elif isinstance(lie.value, tuple):
            record[key] = Array(np.ones(lie.value, np.float32))
        else:
            record[key] = Array(_filled(record[key].numpy(), lie.value))


def _zeros(own: Any) -> Any:
    """Return zeros of the type and the length of a value, or of each in a list."""
    if isinstance(own, list):
        return [_zeros(one) for one in own]
    return own.__class__() if isinstance(own, int | float) else (b"\0" if isinstance(own, bytes) else "0") * len(own)


def _filled(own: np.ndarray, value: Any) -> np.ndarray:
    if value == ONE:
        claimed = np.zeros_like(own)
        claimed.flat[0] = own.sum()
        return claimed
    with np.errstate(all="ignore"):
        return np.full_like(own, value)


def declared() -> dict[Place, tuple[Field, bool]]:
    """Return each field that a record of a client's messages declares, and whether a message may lack it."""
    found: dict[Place, tuple[Field, bool]] = {}
    for row, kinds in RECORDS.items():
        for record in kinds:
            for attribute, (field, optional) in fields_of(record).items():
                keys = ["*"] if field.record in MODELS else (field.key or wire_name(attribute)).split(", ")
                found |= {(kind, field.record, key): (field, optional) for kind in MESSAGES[row] for key in keys}
    return found


def values_of(field: Field) -> list[Any]:
    """Return what to say in a field: extremes of its kind, and both ends of the range that it declares."""
    values: tuple[Any, ...]
    match field:
        case Whole() | Real():
            values = (*NUMBERS, field.low, field.high)
        case Reals():
            singles = ([value] for value in (field.low, field.high, DENORMAL, -1.0, 1e38, NAN))
            low, high, between = [field.low], [field.high], field.most - 1
            values = (*NUMBERS, *singles, high * field.most, low + high * between, high * between + low)
        case Text():
            values = (*TEXTS, "a" * field.longest)
        case Texts():
            lists_of_names = (
                [f"{i} more" for i in range(count)] for count in (1, 100, 101, field.most, field.most + 1)
            )
            values = (*TEXTS, *lists_of_names, ["a" * field.longest], [""])
        case Arrays():
            values = (*FILLS, field.high, -field.high if field.low is None else field.low, *SHAPES)
        case _ if field.record == "arrays":
            values = (*FILLS, *SHAPES)
        case _:
            values = OTHERS
    return list({(type(value), in_short(value)): value for value in (*values, MISSING)}.values())


def is_refused(lie: Lie, field: Field, optional: bool) -> bool:
    """Return whether what reads the field refuses the value by what the field declares, so that it acts on nothing."""
    if lie.value == MISSING:
        return not optional
    if lie.value in (ONE, SAME_FORM):
        return False
    if isinstance(field, Arrays | Other) and field.record in (*MODELS, "signature"):
        if isinstance(lie.value, tuple):
            return True
        return isinstance(field, Arrays) and not _takes(field, torch.tensor([lie.value], dtype=torch.float32), lie.key)
    return isinstance(field, Other) or not _takes(field, lie.value, lie.key)


def _takes(field: Field, value: Any, key: str) -> bool:
    try:
        field.check(value, key)
    except WireError:
        return False
    return True


def with_one_refused(lies: Iterable[Lie]) -> list[Lie]:
    """Return the lies, but of those about one field in one mode that are refused only the first."""
    known, kept, refused = declared(), [], set()
    for lie in lies:
        where = (lie.mode, lie.place)
        if lie.place in known and not is_refused(lie, *known[lie.place]):
            kept.append(lie)
        elif where not in refused:
            refused.add(where)
            kept.append(lie)
    return kept
