import math

import pytest
import torch
from tests_support import numbered_classes
from torch import nn

from disue.data import Examples
from disue.metrics import agreement_with_groups, churn, evaluate, predict_logits, worst_decile
from disue.tasks.classification import log_prior

CPU = torch.device("cpu")


class Logits(nn.Module):
    """Gives its input back as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_accuracy_and_loss_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    result = evaluate(numbered_classes(2), Logits(), Examples(x, torch.tensor([0, 1, 1, 0])), CPU)
    assert result.metrics == {"accuracy": 0.75}
    margins = [2.0, 1.0, -3.0, 1.0]
    assert result.loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4)


def test_a_logit_shift_changes_the_decision() -> None:
    examples = Examples(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert evaluate(numbered_classes(2), Logits(), examples, CPU).metrics["accuracy"] == 0.0
    shift = torch.tensor([0.0, 2.0])
    assert evaluate(numbered_classes(2), Logits(), examples, CPU, shift).metrics["accuracy"] == 1.0


def test_batches_do_not_change_logits() -> None:
    x = torch.randn(10, 3)
    torch.testing.assert_close(predict_logits(Logits(), x, CPU, batch_size=4), x)


def test_predictions_do_not_depend_on_the_layout_that_a_training_left() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten()), torch.randn(2, 3, 8, 8)
    first = predict_logits(model, x, CPU)
    for layout in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=layout)  # type: ignore[call-overload]
        assert torch.equal(predict_logits(model, x, CPU), first)


def test_a_model_can_be_trained_after_it_has_moved_to_where_it_predicts() -> None:
    """Parameters that move to a GPU in inference mode are tensors of that mode, which autograd refuses."""

    class Moved(nn.Linear):
        def to(self, *_: object, **__: object) -> "Moved":
            self.weight = nn.Parameter(self.weight.detach().clone())  # as a move to another device does
            return self

    model, x = Moved(2, 3), torch.randn(4, 2)
    model.weight = nn.Parameter(torch.randn(2, 3).T)  # in another layout, so that it moves
    before = model.weight
    predict_logits(model, x, CPU)
    assert model.weight is not before
    (model(x) * model(x)).sum().backward()
    assert model.weight.grad is not None


def test_log_prior_is_a_distribution_and_stays_finite() -> None:
    prior = log_prior(torch.tensor([[9.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(prior.exp().sum(dim=1), torch.ones(2))
    assert float(prior[0, 0]) == pytest.approx(math.log(9.1 / 10.3))
    assert bool(torch.isfinite(prior).all())


def test_agreement_needs_planted_groups() -> None:
    assert agreement_with_groups([0, 0, 1], [1, 1, 0]) == (1.0, 1.0)
    assert agreement_with_groups([0, 0, 1], [-1, -1, -1]) is None
    assert agreement_with_groups([], []) is None


def test_churn_counts_clients_known_before_and_after() -> None:
    assert churn({"a": 0, "b": 1, "c": 1}, {"a": 0, "b": 0, "d": 3}) == 0.5
    assert churn({}, {"a": 0}) == 0.0


def test_worst_decile() -> None:
    assert worst_decile([i / 20 for i in range(20)]) == pytest.approx(0.025)
    assert worst_decile([0.9, 0.4]) == 0.4


def test_clients_without_a_planted_group_are_left_out_of_the_agreement() -> None:
    assert agreement_with_groups([0, 0, 1, 1, 1], [2, 2, 5, 5, -1]) == agreement_with_groups([0, 0, 1, 1], [2, 2, 5, 5])
    assert agreement_with_groups([0, 1], [-1, -1]) is None
