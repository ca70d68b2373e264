import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disue.config import ClientConfig
from disue.data import SCENARIOS, build_federation, federation
from disue.data.scenarios import rotate
from disue.errors import ConfigError, DataError


@given(st.sampled_from(sorted(SCENARIOS)), st.integers(2, 30), st.integers(1, 5), st.integers(0, 100))
@settings(max_examples=60)
def test_the_five_sets_are_disjoint(scenario: str, clients: int, groups: int, seed: int) -> None:
    config = ClientConfig(scenario=scenario, num_groups=groups, seed=seed, train_examples=30, test_examples=5)
    federation = build_federation(config, clients)
    train = np.concatenate([federation.proxy_indices, *federation.train_parts])
    test = np.concatenate([federation.test_indices, *federation.test_parts])
    assert len(np.unique(train)) == len(train)
    assert len(np.unique(test)) == len(test)
    assert train.max() < len(federation.dataset.train)
    assert test.max() < len(federation.dataset.test)
    assert sum(map(len, federation.train_parts)) == min(
        30 * clients, len(federation.dataset.train) - len(federation.proxy_indices)
    )
    assert min(map(len, federation.train_parts)) >= 2
    assert min(map(len, federation.test_parts)) >= 1


@given(
    st.sampled_from(["rotation", "label-swap"]),
    st.integers(2, 5),
    st.sampled_from([0, 40, 100, 600]),
    st.integers(0, 9),
)
@settings(max_examples=25)
def test_groups_divide_all_examples_where_there_are_too_few(scenario: str, groups: int, wanted: int, seed: int) -> None:
    """As Ghosh et al. 2020 divide MNIST: each image is in all rotations, in each with one client."""
    values = {"scenario": scenario, "num_groups": groups, "seed": seed, "proxy_size": 100, "global_test_size": 100}
    config = ClientConfig(**values, train_examples=wanted, test_examples=wanted, reuse_examples=True)
    made = build_federation(config, 4 * groups)
    of_server = {"train": made.proxy_indices, "test": made.test_indices}
    for kind, parts in (("train", made.train_parts), ("test", made.test_parts)):
        pool = np.setdiff1d(np.arange(len(getattr(made.dataset, kind))), of_server[kind])
        if 0 < 4 * groups * wanted <= len(pool):
            expected, divided = 4 * groups * wanted, [np.concatenate(parts)]
        else:
            expected = min(4 * wanted or len(pool), len(pool))
            divided = [np.concatenate(parts[group::groups]) for group in range(groups)]
        for found in divided:
            assert len(np.unique(found)) == len(found) == expected
            assert np.isin(found, pool).all()
        if expected == len(pool):
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= made.dataset.num_classes  # equal parts, but for each class's rounding


def test_where_there_are_enough_examples_nobody_reuses_any() -> None:
    plain = ClientConfig(scenario="rotation", num_groups=4, train_examples=50, test_examples=10)
    apart = build_federation(plain, 12)
    reused = build_federation(plain.model_copy(update={"reuse_examples": True}), 12)
    for first, second in zip(apart.train_parts + apart.test_parts, reused.train_parts + reused.test_parts, strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("scenario", ["iid", "dirichlet", "label-groups", "quantity", "shards"])
def test_what_all_groups_see_alike_is_not_reused(scenario: str) -> None:
    with pytest.raises(ConfigError, match=f"reuse-examples: got true; scenario '{scenario}' shows all groups the same"):
        build_federation(ClientConfig(scenario=scenario, reuse_examples=True), 4)


def test_the_global_test_set_is_balanced() -> None:
    counts = torch.bincount(build_federation(ClientConfig(), 12).global_test().y)
    assert counts.min() == counts.max() > 0


def test_the_same_seed_gives_the_same_federation_and_another_one_does_not() -> None:
    first, other = build_federation(ClientConfig(seed=1), 5), build_federation(ClientConfig(seed=2), 5)
    federation.federation_of.cache_clear()
    again = build_federation(ClientConfig(seed=1), 5)
    for client in range(5):
        assert torch.equal(first.client(client).train.x, again.client(client).train.x)
    assert torch.equal(first.proxy(), again.proxy())
    assert not np.array_equal(first.proxy_indices, other.proxy_indices)


def test_a_client_sees_its_groups_view_and_its_test_data_follow_its_training_data() -> None:
    federation = build_federation(ClientConfig(scenario="rotation", num_groups=4), 8)
    raw = federation.dataset.train[federation.train_parts[5]]
    expected = federation.dataset.normalise(rotate(raw.x, 90.0))
    assert federation.client(5).group == 1
    torch.testing.assert_close(federation.client(5).train.x, expected)

    skewed = build_federation(ClientConfig(scenario="label-groups", train_examples=0, test_examples=0), 3)
    for client in range(3):
        data = skewed.client(client)
        train, test = (torch.bincount(part.y, minlength=10) / len(part) for part in (data.train, data.test))
        assert float((train - test).abs().max()) < 0.05


def test_clients_data_are_kept_as_long_as_they_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClientConfig(scenario="iid", train_examples=50, test_examples=10, seed=77)
    kept = build_federation(config, 4)
    assert kept.client(2) is kept.client(2)
    monkeypatch.setattr(federation, "KEPT_BYTES", 2 * kept.client(0).nbytes)
    federation.federation_of.cache_clear()
    opened = build_federation(config, 4)
    first = [opened.client(i) for i in range(4)]
    assert [opened.client(i) is first[i] for i in range(4)] == [True, True, False, False]
    assert all(torch.equal(opened.client(i).train.x, kept.client(i).train.x) for i in range(4))


def test_proxy_and_global_test_set_show_all_views_equally() -> None:
    federation = build_federation(ClientConfig(scenario="label-swap", num_groups=4), 8)
    raw = federation.dataset.test[federation.test_indices]
    changed = (federation.global_test().y != raw.y).double().mean()
    assert 0.5 < float(changed) <= 0.8  # three of four views permute labels, each leaving few where they were
    rotated = build_federation(ClientConfig(scenario="rotation", num_groups=2), 8)
    upright = rotated.dataset.normalise(rotated.dataset.train[rotated.proxy_indices].x)
    same = (rotated.proxy() == upright).flatten(1).all(dim=1).double().mean()
    assert float(same) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("config", "clients", "words"),
    [
        (ClientConfig(proxy_size=1_000_000), 12, ["proxy-size: got 1000000", "1347", "at most 1323"]),
        (ClientConfig(train_examples=1), 12, ["train-examples: got 1; use 0 (all) or at least 2"]),
        (ClientConfig(proxy_size=3), 12, ["proxy-size: got 3; use 0 (chosen) or at least 10"]),
        (ClientConfig(), 1000, ["1347 training examples for 1000 clients"]),
        (ClientConfig(), 600, ["test examples for 600 clients"]),
    ],
)
def test_asking_for_too_much_is_one_line(config: ClientConfig, clients: int, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        build_federation(config, clients)
    for word in words:
        assert word in str(caught.value)
