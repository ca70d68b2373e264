import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disue.data import Examples
from disue.data.scenarios import (
    NO_GROUP,
    SCENARIOS,
    ScenarioInput,
    balanced_dirichlet_shares,
    rotate,
    split_by_shares,
)

GROUPED = ("label-groups", "rotation", "label-swap")


def scenario_input(num_clients: int, num_groups: int, alpha: float, seed: int, classes: int = 10) -> ScenarioInput:
    rng = np.random.default_rng(seed)
    return ScenarioInput(num_clients, rng.integers(5, 80, classes), num_groups, alpha, rng)


sizes = st.tuples(
    st.sampled_from(sorted(SCENARIOS)),
    st.integers(1, 25),
    st.integers(1, 6),
    st.sampled_from([0.05, 0.1, 0.5, 5.0, 100.0]),
    st.integers(0, 10_000),
)


@given(sizes)
@settings(max_examples=150)
def test_shares_are_a_division_of_every_class(drawn: tuple[str, int, int, float, int]) -> None:
    name, clients, groups, alpha, seed = drawn
    scenario = SCENARIOS[name](scenario_input(clients, groups, alpha, seed))
    assert scenario.shares.shape == (clients, 10)
    assert (scenario.shares >= 0.0).all()
    np.testing.assert_allclose(scenario.shares.sum(axis=0), 1.0)
    assert scenario.groups.shape == (clients,)
    if name in GROUPED:  # groups differ in size by one client at most, and members share one distribution
        sizes = np.bincount(scenario.groups)
        assert len(sizes) == min(groups, clients)
        assert sizes.max() - sizes.min() <= 1
        for group in range(len(sizes)):
            members = scenario.shares[scenario.groups == group]
            np.testing.assert_allclose(members, members[:1].repeat(len(members), axis=0))


@given(sizes)
@settings(max_examples=100)
def test_splits_are_disjoint_and_complete_and_follow_the_shares(
    drawn: tuple[str, int, int, float, int],
) -> None:
    name, clients, groups, alpha, seed = drawn
    given_input = scenario_input(clients, groups, alpha, seed)
    labels = np.repeat(np.arange(10), given_input.class_counts)
    scenario = SCENARIOS[name](given_input)
    parts = split_by_shares(labels, scenario.shares, np.random.default_rng(seed), minimum=2)
    together = np.concatenate(parts)
    assert len(together) == len(labels)
    assert len(np.unique(together)) == len(labels)
    assert min(map(len, parts)) >= 2
    if name in ("iid", "rotation", "label-swap"):  # nobody had to be fed
        for share, part in zip(scenario.shares, parts, strict=True):
            counts = np.bincount(labels[part], minlength=10)
            assert (np.abs(counts - share * given_input.class_counts) <= 1.0 + 1e-9).all()


@given(st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=50)
def test_a_larger_alpha_makes_clients_more_alike(clients: int, seed: int) -> None:
    counts = np.full(10, 100)

    def skew(alpha: float) -> float:
        draws = [balanced_dirichlet_shares(counts, clients, alpha, np.random.default_rng(seed + i)) for i in range(5)]
        return float(np.mean([draw.std() for draw in draws]))

    assert skew(100.0) < skew(0.1)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 1.0])
def test_dirichlet_parts_have_similar_sizes_and_wished_sizes_are_kept(alpha: float) -> None:
    counts = np.full(100, 50)
    rng = np.random.default_rng(0)
    held = balanced_dirichlet_shares(counts, 5, alpha, rng) @ counts
    assert held.max() < 1.5 * held.min()
    held = balanced_dirichlet_shares(counts, 2, alpha, rng, np.array([3, 1])) @ counts
    assert 2.0 < held[0] / held[1] < 4.5


@pytest.mark.parametrize("name", GROUPED)
def test_planted_groups_are_round_robin(name: str) -> None:
    scenario = SCENARIOS[name](scenario_input(7, 3, 0.1, 0))
    assert scenario.groups.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert scenario.num_groups == 3


def test_scenarios_without_groups_say_so() -> None:
    for name in ("dirichlet", "shards"):
        assert (SCENARIOS[name](scenario_input(6, 3, 0.1, 0)).groups == NO_GROUP).all()
    for name in ("iid", "quantity"):
        assert (SCENARIOS[name](scenario_input(6, 3, 0.1, 0)).groups == 0).all()


def test_label_groups_share_one_label_distribution_and_differ_between_groups() -> None:
    shares = SCENARIOS["label-groups"](scenario_input(8, 4, 0.1, 3)).shares
    np.testing.assert_allclose(shares[:4], shares[4:])
    assert np.abs(shares[0] - shares[1]).max() > 0.1


def test_shards_give_each_client_two_contiguous_pieces() -> None:
    counts = np.full(10, 20)
    given_input = ScenarioInput(10, counts, 1, 1.0, np.random.default_rng(0))
    shares = SCENARIOS["shards"](given_input).shares
    # 20 shards of 10 examples: half a class each, so a client sees one class whole or two by half.
    assert set(np.unique(shares.round(9))) <= {0.0, 0.5, 1.0}
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)


def test_shards_of_a_pool_that_lacks_a_class() -> None:
    given_input = ScenarioInput(4, np.array([8, 0, 8]), 1, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(SCENARIOS["shards"](given_input).shares.sum(axis=0), 1.0)


def test_rotation_turns_by_group() -> None:
    scenario = SCENARIOS["rotation"](scenario_input(4, 4, 0.1, 0))
    x = torch.arange(2 * 3 * 3).reshape(2, 1, 3, 3).to(torch.uint8)
    examples = Examples(x, torch.tensor([0, 1]))
    for group in range(4):
        turned = scenario.transform(examples, group)
        assert np.array_equal(turned.x[0, 0].numpy(), np.rot90(x[0, 0].numpy(), group))
        assert turned.x.dtype == torch.uint8
        assert torch.equal(turned.y, examples.y)


@pytest.mark.parametrize("degrees", [30.0, 120.0, 200.0, 240.0, 271.0])
def test_rotation_between_right_angles_is_scipys(degrees: float) -> None:
    x = torch.rand(1, 1, 15, 15, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.rotate(x[0, 0].numpy(), degrees, reshape=False, order=1)
    inside = np.hypot(*np.mgrid[-7:8, -7:8]) < 6  # beyond, the two treat the border differently
    np.testing.assert_allclose(rotate(x, degrees)[0, 0].numpy()[inside], expected[inside], atol=1e-5)


def test_label_swap_permutes_labels_and_only_labels() -> None:
    scenario = SCENARIOS["label-swap"](scenario_input(6, 3, 0.1, 1))
    examples = Examples(torch.zeros(10, 1, 2, 2), torch.arange(10))
    seen = [scenario.transform(examples, group).y for group in range(3)]
    assert torch.equal(seen[0], torch.arange(10))
    for labels in seen:
        assert sorted(labels.tolist()) == list(range(10))
    assert not torch.equal(seen[1], seen[2])


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 examples cannot give 2 clients 2 each"):
        split_by_shares(np.array([0, 0, 1]), np.full((2, 2), 0.5), np.random.default_rng(0), minimum=2)
