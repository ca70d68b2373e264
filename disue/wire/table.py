"""The table of all fields that a client fills, made from the records: ``python -m disue.wire.table``."""

from collections.abc import Iterator

from disue.fields import fields_of, wire_name
from disue.signature import Signature
from disue.tasks import DataSummary
from disue.wire.compare import CompareReply
from disue.wire.describe import DescribeReply
from disue.wire.evaluate import EvaluateReply
from disue.wire.hello import HelloReply
from disue.wire.secagg import KeptReply, MaskedReply, Parcels, PublicKeys, Turn
from disue.wire.train import TrainReply

RECORDS: dict[str, tuple[type, ...]] = {
    "hello": (HelloReply, DataSummary),
    "describe": (DescribeReply,),
    "train": (TrainReply, Signature),
    "train, `privacy=secure`": (PublicKeys, KeptReply),
    "share, unmask": (Turn, Parcels),
    "mask": (Turn, MaskedReply),
    "compare": (CompareReply,),
    "features": (Signature,),
    "early": (Signature,),
    "evaluate": (EvaluateReply,),
}
"""What each kind of message is answered with."""


def fields_table() -> str:
    """Return the table as Markdown."""
    lines = ["| message | record | field | must be | what it does, and up to what |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *_rows()]) + "\n"


def _rows() -> Iterator[str]:
    for message, kinds in RECORDS.items():
        for kind in kinds:
            for attribute, (field, _) in fields_of(kind).items():
                cells = (message, field.record, field.key or wire_name(attribute), field.allowed, field.effect)
                yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(fields_table(), end="")
