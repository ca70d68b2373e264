"""A model's running mean over rounds."""

import pytest
import torch

from strategies.aggregation.steps import DECAY, RunningMean


def mean_of(values: list[float], least: float) -> float:
    mean = RunningMean({"w": torch.tensor([values[0]])})
    for value in values[1:]:
        mean = mean.followed_by({"w": torch.tensor([value])}, least)
    assert mean.rounds == len(values)
    return float(mean.state["w"])


def test_it_counts_rounds_as_a_polynomial_decays() -> None:
    """Round s has the weight of Γ(s + DECAY) / Γ(s) among all of them."""
    values = [float(value) for value in torch.randn(30, generator=torch.Generator().manual_seed(0))]
    weights = torch.lgamma(torch.arange(1, 31, dtype=torch.float64) + DECAY) - torch.lgamma(
        torch.arange(1, 31, dtype=torch.float64)
    )
    expected = float(torch.softmax(weights, dim=0) @ torch.tensor(values, dtype=torch.float64))
    assert mean_of(values, 0.0) == pytest.approx(expected, abs=1e-6)


def test_the_last_round_counts_for_so_much_at_least() -> None:
    assert mean_of([0.0] * 200 + [1.0], 0.25) == pytest.approx(0.25)
    assert mean_of([3.0, 5.0, 7.0], 1.0) == 7.0
