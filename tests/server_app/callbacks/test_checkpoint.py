"""What a checkpoint holds, and what it makes of a damaged one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import strategies.stored
from disue.errors import DataError
from disue.signature import Signature
from disue.tasks import DataSummary
from server_app.callbacks import checkpoint
from server_app.callbacks.checkpoint import Checkpoints, packed, unpacked
from strategies.distillation.knowledge import Knowledge
from strategies.rounds.registry import Client
from strategies.rounds.state import restore, state_of
from strategies.stored import STORED, stored
from strategies.teams import Team

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers() | st.builds(Team, st.integers(), st.text())
TREES = st.recursive(
    PLAIN | st.sets(st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def again(value: Any) -> Any:
    return unpacked(packed(value))


def types_in(value: Any) -> Any:
    inner = [*value.items()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return type(value), [types_in(own) for own in inner]


@given(TREES)
def test_plain_values_come_back_as_they_were(tree: Any) -> None:
    assert again(tree) == tree
    assert types_in(again(tree)) == types_in(tree)


def test_tensors_come_back_bit_for_bit() -> None:
    matrix = torch.randn(4, 6)
    special = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45])
    for tensor in (matrix, matrix.T, matrix[1:, ::2], special, torch.tensor(3), torch.arange(3), matrix.bfloat16()):
        found = again([tensor])[0]
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        width = tensor.element_size()
        assert found.contiguous().view(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().view(-1).view(torch.uint8).tolist()
        ), width


def test_what_is_one_object_is_one_object_again_and_what_is_two_is_two() -> None:
    state = {"w": torch.zeros(2)}
    told = Knowledge({"a": Signature(torch.ones(2), torch.ones(2, 3))}, {"a": "mlp"}, {"mlp": state})
    twin = {"w": state["w"]}
    found = again({"universal": state, "experts": {Team(0, "mlp"): state, Team(1, "mlp"): twin}, "knowledge": told})
    universal, knowledge = found["universal"], found["knowledge"]
    first, second = found["experts"].values()
    assert first is universal
    assert second is not universal
    assert second["w"] is universal["w"]
    assert type(knowledge) is Knowledge
    assert type(knowledge.told["a"]) is Signature
    assert knowledge.told["a"].covariance is None
    assert knowledge.spaces["mlp"] is universal
    assert type(next(iter(found["experts"]))) is Team


def test_views_of_one_tensor_come_back_as_tensors_of_their_own() -> None:
    rows = torch.arange(6.0).view(2, 3)
    first, second = again(list(rows))
    assert [first.tolist(), second.tolist()] == rows.tolist()


def test_a_client_with_data_of_its_own_comes_back() -> None:
    client = Client("ward", 2**63 - 1, 10, -1, 0, "cnn", DataSummary(("a", "b"), (0.1,), (0.3,)))
    assert again(client) == client


@pytest.mark.parametrize("value", [object(), b"bytes", {1.5j}, Path("x"), print])
def test_nothing_else_is_kept(value: object) -> None:
    with pytest.raises(TypeError, match="a checkpoint cannot hold a"):
        packed([value])


class Inner:
    stateful: ClassVar[tuple[str, ...]] = ("count",)

    def __init__(self) -> None:
        self.count = 0
        self.scratch = 0


class Outer:
    stateful: ClassVar[tuple[str, ...]] = ("inner", "seen")

    def __init__(self) -> None:
        self.inner = Inner()
        self.seen: list[int] = []


def test_parts_are_restored_in_place_with_those_in_them() -> None:
    one, other = Outer(), Outer()
    one.inner.count, one.inner.scratch, one.seen = 1, 1, [7]
    inner = other.inner
    restore(other, again(state_of(one)))
    assert other.inner is inner
    assert (inner.count, inner.scratch, other.seen) == (1, 0, [7])


def test_a_state_of_another_version_is_an_error() -> None:
    with pytest.raises(DataError, match="was written by another version of disue"):
        restore(Inner(), state_of(Outer()))


@dataclass(frozen=True)
class Measured:
    height: float


def test_a_record_comes_back_if_it_is_stored_and_two_have_no_name_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a checkpoint cannot hold a Measured"):
        packed(Measured(1.5))
    monkeypatch.setattr("strategies.stored.STORED", dict(STORED))
    monkeypatch.setattr("server_app.callbacks.checkpoint.STORED", strategies.stored.STORED)
    stored(Measured)
    assert again(Measured(1.5)) == Measured(1.5)
    with pytest.raises(ValueError, match="'Measured' is stored already, as .*Measured; give it another"):
        stored(Measured)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Checkpoints, list[Path]]:
    """Three rounds were saved."""
    checkpoints, part = Checkpoints(tmp_path), Inner()
    checkpoints.directory.mkdir()
    for part.count in (1, 2, 3):
        checkpoints.save(part.count, {"part": part})
    return checkpoints, sorted(checkpoints.directory.iterdir())


def test_the_last_two_are_kept_and_anybody_can_read_them(kept: tuple[Checkpoints, list[Path]]) -> None:
    checkpoints, paths = kept
    assert [path.name[:12] for path in paths] == ["round-000002", "round-000003"]
    with safe_open(paths[-1], "pt") as file:
        assert json.loads(file.metadata()["disue"])["format"] == 2
    saved = checkpoints.load()
    assert saved is not None
    assert (saved.round, saved.parts, saved.damaged) == (3, {"part": {"count": 3}}, [])


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_damaged_one_is_passed_over_and_removed_by_the_next(
    kept: tuple[Checkpoints, list[Path]], damage: str
) -> None:
    checkpoints, (second, third) = kept
    content = third.read_bytes()
    flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    third.write_bytes({"flipped": flipped, "short": content[:-1], "empty": b""}[damage])
    saved = checkpoints.load()
    assert saved is not None
    assert (saved.round, saved.damaged) == (2, [third.name])
    part = Inner()
    part.count = 4
    checkpoints.save(3, {"part": part})
    left = sorted(checkpoints.directory.iterdir())
    assert left[0] == second
    assert len(left) == 2
    assert third not in left
    for path in left:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="all checkpoints are damaged"):
        checkpoints.load()


def test_one_of_another_format_is_refused_with_both_numbers(
    kept: tuple[Checkpoints, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, (_, third) = kept
    written = checkpoint.FORMAT
    monkeypatch.setattr(checkpoint, "FORMAT", written + 1)
    with pytest.raises(DataError) as caught:
        checkpoints.load()
    assert str(caught.value) == (
        f"'{third}' was written by another version of disue (ValueError: format: got {written}; this version reads "
        f"{written + 1}); go on with that version, or run it anew"
    )


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).load() is None
