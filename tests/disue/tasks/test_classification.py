"""What a classification answers, and that a loss of one's own is the one that is trained and evaluated."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn

from client_app.train import train
from client_app.train_batched import train_batched
from disue.config import ClientConfig
from disue.data import Examples
from disue.metrics import evaluate
from disue.models import build_model, get_state
from disue.objective import PLAIN
from disue.tasks import Classification
from disue.tasks.losses import Loss

CPU = torch.device("cpu")


class LabelSmoothing(Loss):
    """Cross-entropy against labels of which a tenth is shared out among all classes (Szegedy et al. 2016)."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


@dataclass(frozen=True)
class Signals(Classification):
    """Signals in two channels, of 16 values each."""

    class_names: tuple[str, ...] = ("a", "b", "c")
    shape: tuple[int, ...] = (2, 16)
    mean: tuple[float, ...] = (1.0, -3.0)
    std: tuple[float, ...] = (2.0, 0.5)


class Smoothed(Signals):
    @property
    def loss(self) -> Loss:
        return LabelSmoothing()


TASK = Signals()


def examples(count: int = 30) -> Examples:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count,), generator=g)
    return Examples(torch.randn(count, 2, 16, generator=g) + y.view(-1, 1, 1), y)


def test_its_numbers_are_scikit_learns() -> None:
    data, model = examples(), build_model("mlp", TASK.shape, TASK.num_outputs)
    with torch.no_grad():
        logits = model(data.x)
    found = evaluate(TASK, model, data, CPU)
    probabilities = np.exp(log_softmax(logits.double().numpy(), axis=1))
    assert found.loss == pytest.approx(log_loss(data.y.numpy(), probabilities), rel=1e-9)
    assert found.metrics == {"accuracy": accuracy_score(data.y.numpy(), logits.argmax(dim=1).numpy())}
    assert TASK.loss_unit == pytest.approx(log_loss([0, 1, 2], np.full((3, 3), 1 / 3)))


def test_a_stratum_is_a_class() -> None:
    y = torch.tensor([2, 0, 2, 2])
    assert TASK.strata(y).tolist() == [2, 0, 2, 2]
    assert TASK.count_strata(y).tolist() == [1.0, 0.0, 3.0]
    np.testing.assert_allclose(TASK.log_prior(y).numpy(), np.log(np.array([1.1, 0.1, 3.1]) / 4.3), rtol=1e-6)


def test_inputs_of_any_rank_are_normalised_along_their_first_axis() -> None:
    raw = torch.rand(5, 2, 16, generator=torch.Generator().manual_seed(1))
    expected = (raw.numpy() - np.array([1.0, -3.0])[:, None]) / np.array([2.0, 0.5])[:, None]
    np.testing.assert_allclose(TASK.normalise(raw).numpy(), expected, rtol=1e-6)
    assert TASK.noise(7, torch.Generator()).shape == (7, 2, 16)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean smoothed loss from the definition."""
    wanted = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
    return -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()


def alone(config: ClientConfig, data: Examples) -> dict[str, Tensor]:
    model = build_model("mlp", TASK.shape, 3)
    train(model, data, config, PLAIN, torch.Generator(), CPU, Smoothed())
    return get_state(model)


def together(config: ClientConfig, data: Examples) -> dict[str, Tensor]:
    model = build_model("mlp", TASK.shape, 3)
    return train_batched(model, [get_state(model)], [data], config, PLAIN, [torch.Generator()], CPU, Smoothed())[0][0]


@pytest.mark.parametrize("way", [alone, together])
def test_a_loss_of_ones_own_is_trained_and_evaluated(
    way: Callable[[ClientConfig, Examples], dict[str, Tensor]],
) -> None:
    config = ClientConfig(local_epochs=1, batch_size=1000, momentum=0.0, learning_rate=0.1)
    data, reference = examples(), build_model("mlp", TASK.shape, 3)
    loss = smoothed(reference(data.x), data.y)
    assert evaluate(Smoothed(), reference, data, CPU).loss == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    state = way(config, data)
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(state[name], parameter.detach() - 0.1 * parameter.grad, atol=1e-6, rtol=1e-4)
