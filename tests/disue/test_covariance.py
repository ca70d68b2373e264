"""Axes of covariances, against NumPy, and how many of them are told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disue.covariance import LEAST_NUMBERS, MOST_AXES, axes_of_strata, num_axes

FEATURES = 6


def of_one_stratum(examples: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features, and the axes of them."""
    x = torch.randn(examples, FEATURES, generator=torch.Generator().manual_seed(seed))
    x = x @ torch.diag(torch.linspace(0.5, 3.0, FEATURES))
    return x, axes_of_strata(x, torch.zeros(examples, dtype=torch.int64), x.mean(dim=0, keepdim=True), count)[0]


@pytest.mark.parametrize("examples", [2, 4, 5])
def test_of_few_examples_the_axes_are_the_whole_covariance(examples: int) -> None:
    x, axes = of_one_stratum(examples, MOST_AXES)
    np.testing.assert_allclose((axes.T @ axes).numpy(), np.cov(x.numpy().T, bias=True), atol=1e-5)
    assert int((axes.norm(dim=1) > 1e-4).sum()) == examples - 1


def test_of_many_they_are_the_longest_and_stand_square_on_each_other() -> None:
    x, axes = of_one_stratum(200, MOST_AXES)
    values = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    products = (axes @ axes.T).numpy()
    np.testing.assert_allclose(products, np.diag(values[:MOST_AXES]), atol=1e-4)


def test_a_stratum_without_an_example_or_with_one_has_none() -> None:
    x = torch.randn(3, FEATURES)
    strata = torch.tensor([0, 0, 2])
    means = torch.stack([x[:2].mean(dim=0), torch.zeros(FEATURES), x[2]])
    axes = axes_of_strata(x, strata, means, 2)
    assert axes.shape == (3, 2, FEATURES)
    assert axes[0].any()
    assert not axes[1:].any()


def test_there_are_no_more_axes_than_features() -> None:
    assert num_axes(2, 3, 10**6) == 3
    assert axes_of_strata(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), torch.zeros(1, 3), 5).shape == (1, 5, 3)


@given(st.integers(1, 1000), st.integers(1, 4096), st.integers(1, 10**9))
def test_they_cost_at_most_ten_kilobytes_or_a_tenth_of_the_model(strata: int, features: int, parameters: int) -> None:
    count = num_axes(strata, features, parameters)
    assert 0 <= count <= min(MOST_AXES, features)
    assert count * strata * features <= max(LEAST_NUMBERS, parameters / 10)
