"""The arithmetic of secure sums, against numpy and loops by hand."""

import contextlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from disue.covariance import covariance_within, from_triangle, looked_at, triangle_size
from disue.models import build_model, get_state
from disue.privacy.secagg import (
    KEY_SHARE_BYTES,
    LARGEST_SUM,
    MOST_NEIGHBOURS,
    SEED_BYTES,
    SEED_SHARE_BYTES,
    Contribution,
    agreed_key,
    from_words,
    needed,
    neighbours,
    new_private_key,
    own_mask,
    pair_mask,
    public_key,
    read_public_key,
    to_words,
    vector_sizes,
)
from disue.signature import Signature, SignatureParts


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=20))
def test_sums_in_fixed_point_are_sums(rows: list[list[float]]) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    words = sum((to_words(row, len(rows)) for row in values), start=np.zeros(3, dtype=np.uint64))
    torch.testing.assert_close(from_words(words), values.sum(dim=0), rtol=0.0, atol=len(rows) * 2.0**-32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), LARGEST_SUM / 3])
def test_what_could_run_over_or_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="expected numbers below"):
        to_words(torch.tensor([0.0, -value], dtype=torch.float64), 3)


def test_both_of_a_pair_have_the_same_mask_and_nobody_else() -> None:
    a, b, c = (new_private_key() for _ in range(3))
    ab, ba = pair_mask(a, public_key(b), 1000), pair_mask(b, public_key(a), 1000)
    assert (ab == ba).all()
    assert not (pair_mask(c, public_key(b), 1000) == ab).any()
    assert agreed_key(a, public_key(b)) == agreed_key(b, public_key(a)) != agreed_key(a, public_key(c))


def test_masks_are_uniform_words_that_depend_on_all_of_the_seed() -> None:
    seed = bytes(range(SEED_BYTES))
    words = own_mask(seed, 20000)
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.02  # six deviations
    for i in range(SEED_BYTES):
        other = bytearray(seed)
        other[i] ^= 1
        assert not (own_mask(bytes(other), 100) == words[:100]).any()
    assert (own_mask(seed, 50) == words[:50]).all()


def test_fewer_shares_than_are_needed_say_nothing_of_a_secret() -> None:
    for secret, length in ((bytes(SEED_BYTES), SEED_SHARE_BYTES), (new_private_key(), KEY_SHARE_BYTES)):
        shares = create_shares(secret, 3, 5)
        assert {len(share) for share in shares} == {length}
        assert combine_shares(shares[2:]) == secret
        with contextlib.suppress(ValueError):
            assert combine_shares(shares[:2]) != secret


def test_a_key_of_another_curve_and_no_key_at_all_are_refused() -> None:
    other = public_key_to_bytes(ec.generate_private_key(ec.SECP256R1()).public_key())
    for bad in (other, b"", b"-----BEGIN PUBLIC KEY-----"):
        with pytest.raises(ValueError):  # noqa: PT011
            read_public_key(bad)


@given(st.integers(1, 60), st.integers(2, 20).map(lambda half: 2 * half))
def test_neighbourhood_is_mutual_and_of_the_size_asked_for(count: int, most: int) -> None:
    members = [f"client-{i}" for i in range(count)]
    near = {name: neighbours(members, name, most) for name in members}
    for name, others in near.items():
        assert len(others) == len(set(others)) == min(count - 1, most)
        assert name not in others
        assert all(name in near[other] for other in others)
    assert all(b in near[a] for a, b in pairwise(members))  # a ring: nobody is cut off


def test_three_are_always_needed() -> None:
    assert [needed(0.6, holders) for holders in (3, 5, 6, 10, MOST_NEIGHBOURS + 1)] == [3, 3, 4, 6, 13]
    assert needed(0.01, 100) == 3


def contributions() -> list[Contribution]:
    rng = torch.Generator().manual_seed(0)
    start = get_state(build_model("mlp", (1, 4, 4), 3))
    made = []
    for i in range(4):
        counts = torch.tensor([3.0 + i, 0.0, 1.0 + i]) if i else torch.tensor([0.0, 0.0, 5.0])
        told = torch.randn(3, 64, generator=rng) * (counts > 0).unsqueeze(1)
        state = {name: tensor + torch.randn(tensor.shape, generator=rng) for name, tensor in start.items()}
        made.append(Contribution(int(counts.sum()), 0.5 + i, 7 * i, state, Signature(counts, told)))
    return made


def test_the_sum_of_vectors_is_the_weighted_mean_of_all_that_clients_tell() -> None:
    made = contributions()
    total = torch.stack([one.to_vector() for one in made]).sum(dim=0)
    together = Contribution.from_vector(total, made[0].state, SignatureParts(3))
    n = [one.num_examples for one in made]
    assert (together.num_examples, together.steps) == (sum(n), 7 * 6)
    assert together.train_loss == pytest.approx(np.average([one.train_loss for one in made], weights=n))
    for name, tensor in together.state.items():
        expected = np.average(torch.stack([one.state[name] for one in made]).numpy(), axis=0, weights=n)
        np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)
        assert tensor.dtype == made[0].state[name].dtype
    told = [one.signature for one in made if one.signature]
    assert together.signature is not None
    assert together.signature.label_counts.tolist() == [15.0, 0.0, 14.0]
    weights = [float(own.label_counts[2]) for own in told]
    expected = np.average(np.stack([own.prototypes[2].numpy() for own in told]), axis=0, weights=weights)
    np.testing.assert_allclose(together.signature.prototypes[2].numpy(), expected, atol=1e-6)
    assert together.signature.prototypes[1].abs().max() == 0.0


def clients_examples(features: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and strata of three clients whose means differ."""
    rng = torch.Generator().manual_seed(1)
    strata = [torch.tensor(own) for own in ([2, 2, 1], [0, 0, 0, 2], [0, 2, 2, 2])]
    return [(torch.randn(len(y), features, generator=rng) + 3.0 * i, y) for i, y in enumerate(strata)]


def told_of(x: torch.Tensor, y: torch.Tensor, share_label_counts: bool) -> Signature:
    counts = torch.bincount(y, minlength=3).float()
    means = torch.zeros(3, x.shape[1]).index_add_(0, y, x) / counts.clamp(min=1.0).unsqueeze(1)
    told = counts if share_label_counts else (counts > 0).float()
    return Signature(told, means, covariance_within(x, y, means))


def summed(told: list[Signature], features: int) -> Signature:
    like, parts = {"head.weight": torch.zeros(3, features)}, SignatureParts(3, "all")
    vectors = [Contribution(9, 0.5, 1, like, own).to_vector() for own in told]
    size = 3 + 3 * (1 + features) + triangle_size(features) + 3 * features
    assert {len(vector) for vector in vectors} == {sum(vector_sizes(like, parts))} == {size}
    together = Contribution.from_vector(torch.stack(vectors).sum(dim=0), like, parts).signature
    assert together is not None
    return together


@pytest.mark.parametrize("features", [5, 200])
def test_the_covariance_of_a_sum_is_that_of_all_examples_around_the_means_of_their_strata(features: int) -> None:
    clients = clients_examples(features)
    together = summed([told_of(*own, share_label_counts=True) for own in clients], features)
    x, y = (torch.cat(parts) for parts in zip(*clients, strict=True))
    off = x - torch.stack([x[y == stratum].mean(dim=0) for stratum in range(3)])[y]
    assert together.covariance is not None
    found = from_triangle(together.covariance).numpy()
    np.testing.assert_allclose(found, np.cov(looked_at(off).double().numpy().T, bias=True), atol=1e-4)


def test_without_label_counts_every_stratum_of_a_client_counts_alike() -> None:
    """The covariance within clients counts by how many strata they have, and that between them by each of these."""
    told = [told_of(*own, share_label_counts=False) for own in clients_examples(5)]
    together = summed(told, 5)
    assert together.label_counts.tolist() == [2.0, 1.0, 3.0]
    expected = np.zeros((5, 5))
    for own in told:
        assert own.covariance is not None
        expected += float(own.label_counts.sum()) * from_triangle(own.covariance).numpy()
        for stratum in own.label_counts.nonzero().flatten():
            off = (own.prototypes[stratum] - together.prototypes[stratum]).numpy()
            expected += np.outer(off, off)
    assert together.covariance is not None
    np.testing.assert_allclose(from_triangle(together.covariance).numpy(), expected / 6.0, atol=1e-4)


def test_a_sum_whose_covariance_no_clients_can_have_is_refused() -> None:
    like = {"head.weight": torch.zeros(1, 2)}
    vector = Contribution(4, 0.5, 1, like, Signature(torch.tensor([4.0]), torch.ones(1, 2), torch.ones(3))).to_vector()
    vector[6] = 1e15
    with pytest.raises(ValueError, match="covariance has values beyond 1e"):
        Contribution.from_vector(vector, like, SignatureParts(1, "all"))


def test_a_model_may_have_more_outputs_than_there_are_strata() -> None:
    state = get_state(build_model("mlp", (5,), 3))
    told = Signature(torch.tensor([4.0]), torch.ones(1, 64))
    vector = Contribution(4, 0.5, 2, state, told).to_vector()
    assert (
        len(vector)
        == sum(vector_sizes(state, SignatureParts(1)))
        == 3 + 1 + 64 + sum(t.numel() for t in state.values())
    )
    found = Contribution.from_vector(vector, state, SignatureParts(1))
    assert found.signature is not None
    assert torch.equal(found.signature.prototypes, told.prototypes)
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, state[name])


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (0, 0.5, "it is of 0.5 examples"),
        (0, -3.0, "it is of -3 examples"),
        (3, -1.0, "negative or not finite"),
        (3, 1000.0, "it counts the labels of"),
        (6, 1e9, "prototypes has values beyond 1e"),
        (-1, 1e9, "head.bias has values beyond 1e"),
        (1, 1e12, "its loss is 3.4"),
    ],
)
def test_a_sum_that_no_clients_can_have_is_refused(position: int, value: float, reason: str) -> None:
    made = contributions()
    total = torch.stack([one.to_vector() for one in made]).sum(dim=0)
    total[position] = value
    with pytest.raises(ValueError, match=reason):
        Contribution.from_vector(total, made[0].state, SignatureParts(3))
