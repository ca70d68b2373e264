"""What fields of messages may be: every declared field at its extremes, and the page that lists them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from fuzzing.messages import asked_for

from disue.errors import WireError
from disue.fields import Arrays, Field, Real, Reals, Text, Texts, Whole, fields_of
from disue.tasks import DataSummary
from disue.wire import CompareReply, EvaluateReply, HelloReply
from disue.wire.reading import read_fields
from disue.wire.table import RECORDS, fields_table

PAGE = Path(__file__).parents[2] / "docs" / "INPUT.md"
EXTREMES = [0, -1, 5e-324, 1e38, 2**63 - 1, math.nan, math.inf, -math.inf, "", "x" * 10**6, [], [1.0] * 10**6, True]
DECLARED = [
    pytest.param(field, id=f"{kind.__name__}.{name}")
    for kinds in RECORDS.values()
    for kind in kinds
    for name, (field, _) in fields_of(kind).items()
]


def allowed(field: Field, value: Any) -> bool:
    """Return whether a field should take a value, said in another way than in the code."""
    match field:
        case Whole(low=low, high=high):
            return type(value) is int and value in range(low, high + 1)
        case Real(low=low, high=high):
            return type(value) in (int, float) and low <= value <= high
        case Reals(low=low, high=high, most=most):
            return type(value) is list and 0 < len(value) <= most and all(low <= own <= high for own in value)
        case Text(longest=longest):
            return type(value) is str and 0 < len(value) <= longest
        case Texts():
            return type(value) is list and len(value) > 0 and all(type(own) is str for own in value)
    return False


@pytest.mark.parametrize("field", DECLARED)
def test_a_field_takes_what_is_in_its_range_and_refuses_the_rest_in_one_short_line(field: Field) -> None:
    if isinstance(field, Arrays):
        values = [torch.tensor([float(v)]) for v in (0, -1, 5e-324, 1e38, math.nan, math.inf)]
        low = -field.high if field.low is None else field.low
        for tensor in values:
            if low <= float(tensor) <= field.high:
                assert field.check(tensor, "key") is tensor
            else:
                with pytest.raises(WireError, match="^key has values that are not finite or out of range; expected"):
                    field.check(tensor, "key")
        with pytest.raises(WireError, match="float64"):
            field.check(torch.zeros(1).double(), "key")
        return
    if not isinstance(field, Whole | Real | Reals | Text | Texts):  # checked against the request, by its record
        assert field.allowed
        return
    for value in EXTREMES:
        if allowed(field, value):
            field.check(value, "key")
        else:
            with pytest.raises(WireError) as caught:
                field.check(value, "key")
            line = str(caught.value)
            assert line.startswith("key is ")
            assert "; expected " in line
            assert len(line) < 300


def test_every_field_says_what_it_does() -> None:
    assert all(param.values[0].effect for param in DECLARED)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [HelloReply, DataSummary, EvaluateReply, CompareReply])
def test_a_field_that_is_missing_is_named_unless_it_may_be(kind: type) -> None:
    content = RecordDict({"metrics": MetricRecord(), "config": ConfigRecord(), "arrays": ArrayRecord()})
    first = next(name for name, (_, optional) in fields_of(kind).items() if not optional)
    with pytest.raises(WireError, match=f"^{first.replace('_', '-')} is missing; expected"):
        read_fields(kind, Message(content, reply_to=asked_for()))


def test_the_page_lists_all_fields() -> None:
    _, _, rest = PAGE.read_text().partition("<!-- fields -->\n")
    assert rest.partition("\n\n")[0] + "\n" == fields_table(), "run: python -m disue.wire.table, and put it there"
