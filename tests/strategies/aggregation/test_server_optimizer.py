"""Against the paper's formulas, a number at a time."""

import pytest
import torch

from strategies.aggregation.server_optimizer import (
    ServerOptimizer,
    ServerOptimizerState,
    SquareRule,
    adagrad,
    adam,
    yogi,
)


@pytest.mark.parametrize("rule", [adam, yogi, adagrad])
def test_two_steps_by_hand(rule: SquareRule) -> None:
    optimizer, state = ServerOptimizer(rule, 0.5, momentum=0.8, decay=0.9, adaptivity=0.1), ServerOptimizerState()
    model, mean, square = 2.0, 0.0, 0.01
    for average in (3.0, 2.5):
        change = average - model
        mean = 0.8 * mean + 0.2 * change
        if rule is adam:
            square = 0.9 * square + 0.1 * change**2
        elif rule is yogi:
            square -= 0.1 * change**2 * (1.0 if square > change**2 else -1.0)
        else:
            square += change**2
        before = {"w": torch.tensor([model])}
        found, state = optimizer.step(state, before, {"w": torch.tensor([average])})
        model += 0.5 * mean / (square**0.5 + 0.1)
        assert float(found["w"]) == pytest.approx(model)
        assert float(before["w"]) != float(found["w"])
