"""The mean gradient, against `torch.optim.SGD`."""

import pytest
import torch

from disue.gradients import mean_gradient


def descended(gradients: list[float], momentum: float) -> torch.Tensor:
    """Return where SGD with a rate of 0.1 comes from 1 by these gradients."""
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_of_gradients_that_are_all_the_same_it_is_that_gradient(momentum: float, steps: int) -> None:
    start, end = {"w": torch.tensor([1.0], dtype=torch.float64)}, {"w": descended([3.0] * steps, momentum)}
    assert float(mean_gradient(start, end, steps, 0.1, momentum)["w"]) == pytest.approx(3.0)


def test_with_momentum_early_gradients_count_for_more_and_without_it_all_the_same() -> None:
    start = {"w": torch.tensor([1.0], dtype=torch.float64)}
    plain = mean_gradient(start, {"w": descended([1.0, 0.0, 5.0], 0.0)}, 3, 0.1)
    assert float(plain["w"]) == pytest.approx(2.0)
    counts = [1.0 + 0.5 + 0.25, 1.0 + 0.5, 1.0]
    heavy = mean_gradient(start, {"w": descended([1.0, 0.0, 5.0], 0.5)}, 3, 0.1, 0.5)
    assert float(heavy["w"]) == pytest.approx((1.0 * counts[0] + 5.0 * counts[2]) / sum(counts))
