from dataclasses import replace
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.aggregation import average as aggregators
from strategies.aggregation.average import weighted_average, weighted_averages
from strategies.updates import ClientUpdate


def update(values: list[float], num_examples: int) -> ClientUpdate:
    state = {"w": torch.tensor(values)}
    return ClientUpdate("c", state, state, num_examples)


def test_closed_form() -> None:
    average = weighted_average([update([1.0, 2.0], 1), update([5.0, -2.0], 3)])
    assert average["w"].tolist() == [4.0, -1.0]  # (1 + 3 * 5) / 4, (2 - 3 * 2) / 4


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(1, 10_000)), min_size=1, max_size=20))
def test_against_numpy(members: list[tuple[float, int]]) -> None:
    average = weighted_average([update([value], count) for value, count in members])
    values, counts = zip(*members, strict=True)
    assert float(average["w"]) == pytest.approx(np.average(values, weights=counts), rel=1e-5, abs=1e-4)


def test_average_of_averages_is_the_average(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(7)
    parts = [updates[:3], updates[3:]]
    experts = [
        replace(part[0], state=weighted_average(part), num_examples=sum(u.num_examples for u in part)) for part in parts
    ]
    torch.testing.assert_close(weighted_average(experts), weighted_average(updates))


def test_one_client_is_returned_bit_for_bit(make_updates) -> None:  # type: ignore[no-untyped-def]
    (only,) = make_updates(1)
    for name, tensor in weighted_average([only]).items():
        assert torch.equal(tensor, only.state[name])
        assert tensor.dtype == only.state[name].dtype


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        weighted_average([])


def test_the_means_of_groups_and_of_all_are_those_taken_one_by_one_bit_for_bit(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(9)
    groups = {key: updates[key::3] for key in range(3)}
    means, of_all = weighted_averages(updates, groups)
    assert means.keys() == groups.keys()
    for mean, members in ((of_all, updates), *((means[key], groups[key]) for key in groups)):
        assert all(torch.equal(mean[name], tensor) for name, tensor in weighted_average(members).items())
        for name, tensor in mean.items():
            total = sum(update.num_examples for update in members)
            expected = sum(update.num_examples / total * update.state[name].double() for update in members)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_group_of_its_own_for_each_client_needs_one_sum_at_a_time(make_updates, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    alive: list[int] = []
    sums: WeakSet[aggregators.WeightedSum] = WeakSet()
    original = aggregators.WeightedSum.add

    def watch(self, *rest):  # type: ignore[no-untyped-def]
        sums.add(self)
        alive.append(len(sums))
        return original(self, *rest)

    monkeypatch.setattr(aggregators.WeightedSum, "add", watch)
    updates = make_updates(8)
    means, _ = weighted_averages(updates, {i: [update] for i, update in enumerate(updates)})
    assert max(alive) == 2
    for i, update in enumerate(updates):
        assert all(torch.equal(means[i][name], tensor) for name, tensor in update.state.items())


def test_every_model_is_read_once(make_updates) -> None:  # type: ignore[no-untyped-def]
    reads: list[str] = []

    class Watched(torch.Tensor):
        def double(self) -> torch.Tensor:  # type: ignore[override]
            reads.append("read")
            return super().double()

    updates = [
        replace(update, state={name: tensor.as_subclass(Watched) for name, tensor in update.state.items()})
        for update in make_updates(6)
    ]
    weighted_averages(updates, {key: updates[key::2] for key in range(2)})
    assert len(reads) == sum(len(update.state) for update in updates)
