"""What clients told, moved to another feature space: against what they would tell there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from disue.covariance import axes_of_strata, covariance_within, from_triangle
from disue.signature import Signature
from strategies.distillation import moving
from strategies.distillation.moving import RIDGE, Move

SAMPLES, STRATA, BEFORE, AFTER = 400, 3, 4, 6


def some_features(seed: int, samples: int = SAMPLES) -> torch.Tensor:
    return torch.randn(samples, BEFORE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def affine() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(BEFORE, AFTER, generator=g), torch.randn(AFTER, generator=g)


def told(features: torch.Tensor, covariance: bool = True) -> Signature:
    """Of examples whose class is 0 or 2."""
    strata = 2 * (torch.arange(len(features)) % 2)
    counts = torch.bincount(strata, minlength=STRATA).float()
    means = torch.stack([features[strata == c].sum(dim=0) / max(float(counts[c]), 1.0) for c in range(STRATA)])
    return Signature(counts, means, covariance_within(features, strata, means) if covariance else None)


def test_an_affine_map_moves_means_and_covariances_exactly(affine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(moving, "RIDGE", 0.0)
    matrix, offset = affine
    x, examples = some_features(1), some_features(2, 50)
    found = Move.between(x, x @ matrix + offset)(told(examples))
    expected = told(examples @ matrix + offset)
    assert torch.equal(found.label_counts, expected.label_counts)
    torch.testing.assert_close(found.prototypes, expected.prototypes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.covariance, expected.covariance, atol=1e-4, rtol=1e-4)
    assert found.prototypes[1].tolist() == [0.0] * AFTER  # no example of it, and no mean


def test_with_the_ridge_it_is_hardly_another(affine) -> None:  # type: ignore[no-untyped-def]
    matrix, offset = affine
    x, examples = some_features(1), some_features(2, 50)
    found, expected = Move.between(x, x @ matrix + offset)(told(examples)), told(examples @ matrix + offset)
    torch.testing.assert_close(found.prototypes, expected.prototypes, atol=0.01, rtol=0.01)
    torch.testing.assert_close(found.covariance, expected.covariance, atol=0.05, rtol=0.01)


def test_the_map_is_scikit_learns_ridge_regression(affine) -> None:  # type: ignore[no-untyped-def]
    matrix, offset = affine
    x = some_features(1)
    y = (x @ matrix + offset).relu()
    own = Move.between(x, y).features
    theirs = Ridge(alpha=RIDGE * float((x - x.mean(dim=0)).square().mean()) * SAMPLES).fit(
        x.double().numpy(), y.double().numpy()
    )
    np.testing.assert_allclose(own.matrix.numpy(), theirs.coef_.T, atol=1e-5)
    np.testing.assert_allclose(own.offset.numpy(), theirs.intercept_, atol=1e-5)
    rest = y.double().numpy() - theirs.predict(x.double().numpy())
    np.testing.assert_allclose(own.left_over.numpy(), np.cov(rest.T, bias=True), atol=1e-5)


def test_what_the_map_leaves_over_is_added_to_the_covariance(affine) -> None:  # type: ignore[no-untyped-def]
    """Noise that is new in the space: clients whose features got it have a covariance that is larger by it."""
    matrix, offset = affine
    g = torch.Generator().manual_seed(3)
    scale = torch.linspace(0.1, 2.0, AFTER)
    x, examples = some_features(1, 20_000), some_features(2, 20_000)
    noise, of_examples = (torch.randn(20_000, AFTER, generator=g) * scale for _ in range(2))
    move = Move.between(x, x @ matrix + offset + noise)
    left_over = move.looked_at.left_over.float()
    torch.testing.assert_close(left_over, torch.diag(scale.square()), atol=0.1, rtol=0.0)
    found, exact = move(told(examples)), told(examples @ matrix + offset)
    added = from_triangle(found.covariance) - from_triangle(exact.covariance)
    torch.testing.assert_close(added, left_over, atol=0.1, rtol=0.0)
    expected = told(examples @ matrix + offset + of_examples)
    torch.testing.assert_close(found.covariance, expected.covariance, atol=0.15, rtol=0.05)
    torch.testing.assert_close(found.prototypes, expected.prototypes, atol=0.1, rtol=0.0)


def test_without_a_covariance_the_means_move(affine) -> None:  # type: ignore[no-untyped-def]
    matrix, offset = affine
    x = some_features(1)
    move = Move.between(x, x @ matrix + offset)
    plain, full = move(told(x, covariance=False)), move(told(x))
    assert plain.covariance is None
    assert torch.equal(plain.prototypes, full.prototypes)


@pytest.mark.parametrize("before", [torch.zeros(5, BEFORE), torch.ones(1, BEFORE), torch.full((9, BEFORE), 3.0)])
def test_where_the_samples_were_all_alike_everything_goes_to_where_they_are(before: torch.Tensor) -> None:
    after = torch.arange(1.0, len(before) + 1).unsqueeze(1).expand(-1, AFTER)
    found = Move.between(before, after)(told(some_features(2, 50)))
    middle = (len(before) + 1) / 2
    torch.testing.assert_close(found.prototypes[[0, 2]], torch.full((2, AFTER), middle))
    spread = ((torch.arange(len(before)) - (len(before) - 1) / 2) ** 2).mean()
    torch.testing.assert_close(from_triangle(found.covariance), spread.expand(AFTER, AFTER))


def with_axes(features: torch.Tensor) -> Signature:
    """As `told`, with all axes of each class."""
    known = told(features, covariance=False)
    axes = axes_of_strata(features, 2 * (torch.arange(len(features)) % 2), known.prototypes, BEFORE)
    return replace(known, covariance=axes)


def test_an_affine_map_moves_axes_exactly(affine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """As many as the space before has dimensions; the covariances that they make are compared."""
    monkeypatch.setattr(moving, "RIDGE", 0.0)
    matrix, offset = affine
    x, examples = some_features(1), some_features(2, 50)
    found = Move.between(x, x @ matrix + offset)(with_axes(examples)).covariance
    expected = with_axes(examples @ matrix + offset).covariance
    assert found.shape == (STRATA, BEFORE, AFTER)
    torch.testing.assert_close(found.mT @ found, expected.mT @ expected, atol=1e-4, rtol=1e-4)
    assert not found[1].any()  # no example of it, and no axis


def test_what_the_map_leaves_over_makes_axes_longer_by_as_much(affine) -> None:  # type: ignore[no-untyped-def]
    matrix, offset = affine
    noise = torch.randn(20_000, AFTER, generator=torch.Generator().manual_seed(3))
    x, examples = some_features(1, 20_000), some_features(2, 500)
    move = Move.between(x, x @ matrix + offset + noise)
    found, exact = move(with_axes(examples)).covariance, with_axes(examples @ matrix + offset).covariance
    added = (found.square().sum(dim=(1, 2)) - exact.square().sum(dim=(1, 2)))[[0, 2]]
    torch.testing.assert_close(added, torch.full((2,), float(AFTER)), atol=0.5, rtol=0.0)
    assert not found[1].any()


def test_of_many_features_means_move_in_all_of_them_and_one_covariance_as_it_was_looked_at() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 200, generator=g)
    move = Move.between(x, 2.0 * x + 1.0)
    strata = torch.zeros(40, dtype=torch.int64)
    examples = torch.randn(40, 200, generator=g)
    means = examples.mean(dim=0, keepdim=True)
    found = move(Signature(torch.tensor([40.0]), means, covariance_within(examples, strata, means)))
    torch.testing.assert_close(found.prototypes, 2.0 * means + 1.0, atol=0.02, rtol=0.0)
    before, after = from_triangle(covariance_within(examples, strata, means)), from_triangle(found.covariance)
    torch.testing.assert_close(after, 4.0 * before, atol=0.1, rtol=0.02)
