"""What several clients are sent in one message, and what they send, comes out as it went in."""

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from disue.errors import WireError
from disue.wire.bundle import bundle, is_bundle, unbundle


def test_what_went_in_comes_out_and_a_record_that_several_have_is_in_it_once() -> None:
    model, other = ArrayRecord(), MetricRecord({"n": 3})
    parts = {4: RecordDict({"arrays": model, "metrics": other}), 0: "it failed", 1: RecordDict({"arrays": model})}
    content = bundle(parts)
    assert is_bundle(content)
    assert not any(is_bundle(part) for part in parts.values() if isinstance(part, RecordDict))
    assert len(content) == 3  # two records, and the table
    out = unbundle(content)
    assert out.keys() == parts.keys()
    assert out[0] == "it failed"
    for seat in (4, 1):
        assert dict(out[seat]) == dict(parts[seat])  # type: ignore[arg-type]
        assert out[seat]["arrays"] is model  # type: ignore[index]


def test_a_client_with_nothing_to_say_has_its_place() -> None:
    assert unbundle(bundle({2: RecordDict()})) == {2: RecordDict()}
    assert unbundle(bundle({})) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"seats": [0, 0]},
        {"seats": [0]},
        {"errors": [0, 1]},
        {"entry-seats": [0, 1, 5]},
        {"entry-seats": [0, 1]},
        {"entry-records": [0, 1, 7]},
        {"entry-records": [-1, 0, 1]},
        {"entry-names": "arrays"},
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, object]) -> None:
    parts = {0: RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord()}), 1: RecordDict({"x": ArrayRecord()})}
    content = bundle(parts)
    table = dict(content["bundle"]) | change  # type: ignore[arg-type]
    content["bundle"] = ConfigRecord(table)  # type: ignore[arg-type]
    with pytest.raises(WireError, match="bundle"):
        unbundle(content)


def test_what_is_no_bundle_is_refused() -> None:
    with pytest.raises(WireError, match="not the bundle"):
        unbundle(RecordDict())


def test_a_column_of_a_million_is_told_of_in_short() -> None:
    content = RecordDict({"bundle": ConfigRecord({"seats": ["a"] * 10**6})})
    with pytest.raises(WireError, match="^the bundle's seats are a list of 1000000$"):
        unbundle(content)
