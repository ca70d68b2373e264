"""A tabular regression trains, is clustered, averaged and evaluated, and no step knows that it is one.

The numbers come from numpy and scikit-learn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.metrics import adjusted_rand_score, mean_absolute_error, r2_score
from torch import nn

from client_app.describe import DESCRIPTIONS, make_signature
from client_app.release.gaussian import seeded
from client_app.release.noisy import NoisyRelease
from client_app.train import output_shift, train
from client_app.train_batched import train_batched
from disue.config import ClientConfig
from disue.data import Examples
from disue.errors import ConfigError
from disue.metrics import Evaluation, evaluate, predict_logits
from disue.models import Classifier, State, build_model, fill, get_state
from disue.models.check import check_networks
from disue.objective import PLAIN, LocalObjective
from disue.tasks import Regression
from disue.wire import EvaluateReply
from strategies.aggregation.average import weighted_averages
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.similarity import SIGNATURES, embed
from strategies.updates import ClientUpdate

CPU = torch.device("cpu")
CONFIG = ClientConfig(local_epochs=20, batch_size=16, learning_rate=0.02, momentum=0.9)
CLIENTS = 6
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Rows and targets in their own units, and the task that is agreed on for them."""

    rows: FloatArray
    targets: FloatArray
    task: Regression

    def examples(self, part: NDArray[np.int64]) -> Examples:
        inputs = self.task.normalise(torch.tensor(self.rows[part], dtype=torch.float32))
        return Examples(inputs, self.task.standardise(torch.tensor(self.targets[part])))


def table(rows: FloatArray, targets: FloatArray) -> Table:
    columns = targets.reshape(len(targets), -1)
    names = tuple(f"target {i}" for i in range(columns.shape[1]))
    moments = [tuple(own.tolist()) for own in (rows.mean(0), rows.std(0), columns.mean(0), columns.std(0))]
    return Table(rows, targets, Regression(names, rows.shape[1:], *moments))


@pytest.fixture(scope="module")
def diabetes() -> Table:
    """442 patients, ten columns each, and how far the disease went in a year (Efron et al. 2004)."""
    rows, targets = load_diabetes(return_X_y=True)
    return table(rows, targets)


def model_for(task: Regression, seed: int = 0) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(nn.Sequential(nn.Linear(task.shape[0], 16), nn.Tanh()), 16, task.num_outputs)


def rng(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def trained(
    data: Examples, task: Regression, number: int = 0, objective: LocalObjective = PLAIN
) -> tuple[Classifier, float]:
    model = model_for(task)
    return model, train(model, data, CONFIG, objective, rng(number), CPU, task).loss


# --- training and evaluation -----------------------------------------------------------------------


def test_the_clients_training_gets_below_the_variance(diabetes: Table) -> None:
    """Whoever says the mean has the variance as loss, which is 1 in standard units, and R2 0."""
    order = np.random.default_rng(0).permutation(len(diabetes.rows))
    fit, held_out = diabetes.examples(order[:300]), diabetes.examples(order[300:])
    model, loss = trained(fit, diabetes.task)
    before = evaluate(diabetes.task, model_for(diabetes.task), held_out, CPU)
    after = evaluate(diabetes.task, model, held_out, CPU)
    assert loss < 0.7 * float(fit.y.var(correction=0))
    assert after.loss < 0.8 * float(held_out.y.var(correction=0)) < before.loss
    assert after.metrics["r2"] == pytest.approx(
        1.0 - after.loss / float(held_out.y.double().var(correction=0)), abs=1e-9
    )
    assert diabetes.task.loss_unit == pytest.approx(float(diabetes.examples(order).y.var(correction=0)), rel=1e-5)


@pytest.mark.parametrize("targets", [1, 3])
def test_an_evaluation_has_scikit_learns_numbers(targets: int) -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(50, 4))
    own = table(rows, 30.0 + rows @ generator.normal(size=(4, targets)) * [1.0, 10.0, 100.0][:targets])
    data, model = own.examples(np.arange(50)), model_for(own.task)
    outputs = predict_logits(model, data.x, CPU)
    found = evaluate(own.task, model, data, CPU)
    truth, said = data.y.double().numpy(), outputs.double().numpy()
    assert found.loss == pytest.approx(np.mean((said - truth) ** 2), rel=1e-9)
    assert found.metrics["r2"] == pytest.approx(r2_score(truth, said), rel=1e-9)
    assert found.metrics["mae"] == pytest.approx(mean_absolute_error(truth, said), rel=1e-9)
    np.testing.assert_allclose(
        own.task.restore(outputs).double().numpy(), said * own.targets.std(0) + own.targets.mean(0), rtol=1e-5
    )


def test_there_is_no_r2_of_targets_that_are_all_alike(diabetes: Table) -> None:
    data = diabetes.examples(np.zeros(3, dtype=np.int64))
    assert evaluate(diabetes.task, model_for(diabetes.task), data, CPU).metrics["r2"] is None


def test_one_full_batch_step_is_gradient_descent_on_the_squared_error(diabetes: Table) -> None:
    data = diabetes.examples(np.arange(60))
    config = ClientConfig(local_epochs=1, batch_size=1000, momentum=0.0, learning_rate=0.1)
    linear = Classifier(nn.Identity(), 10, 1)
    x, y = data.x.double().numpy(), data.y.double().numpy()
    weight, bias = (p.detach().double().numpy() for p in linear.head.parameters())
    error = x @ weight.T + bias - y
    train(linear, data, config, PLAIN, rng(), CPU, diabetes.task)
    np.testing.assert_allclose(linear.head.weight.detach().numpy(), weight - 0.1 * 2 / 60 * error.T @ x, atol=1e-5)
    np.testing.assert_allclose(linear.head.bias.detach().numpy(), bias - 0.1 * 2 * error.mean(0), atol=1e-5)


def test_clients_that_train_as_one_network_go_the_way_that_each_goes_alone(diabetes: Table) -> None:
    parts = [diabetes.examples(np.arange(first, first + size)) for first, size in ((0, 40), (40, 25), (65, 33))]
    start = get_state(model_for(diabetes.task))
    config = ClientConfig(local_epochs=3, batch_size=10, learning_rate=0.02)
    generators = [rng(i) for i in range(3)]
    found = train_batched(model_for(diabetes.task), [start] * 3, parts, config, PLAIN, generators, CPU, diabetes.task)
    for i, (state, result) in enumerate(found):
        alone = model_for(diabetes.task)
        expected = train(alone, parts[i], config, PLAIN, rng(i), CPU, diabetes.task)
        assert result.loss == pytest.approx(expected.loss, abs=1e-5)
        for name, tensor in get_state(alone).items():
            torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-5)


def test_targets_in_another_unit_or_shape_train_the_same_model(diabetes: Table) -> None:
    part = np.arange(80)
    moved = table(diabetes.rows, 1000.0 * diabetes.targets + 5.0)
    column = table(diabetes.rows, diabetes.targets[:, None])
    (model, _), (other, _), (same, _) = (trained(own.examples(part), own.task) for own in (diabetes, moved, column))
    r2 = [evaluate(diabetes.task, own, diabetes.examples(part), CPU).metrics["r2"] for own in (model, other)]
    assert r2[0] == pytest.approx(r2[1], abs=1e-4)
    for name, tensor in get_state(model).items():
        assert torch.equal(tensor, get_state(same)[name])


# --- several clients -------------------------------------------------------------------------------


def planted(seed: int) -> tuple[Table, list[NDArray[np.int64]], list[int]]:
    """Return a table of two kinds of clients, who hold the same rows' distribution and opposite coefficients."""
    generator = np.random.default_rng(seed)
    groups = [client % 2 for client in range(CLIENTS)]
    sizes = [40 + 5 * client for client in range(CLIENTS)]
    rows = generator.normal(size=(sum(sizes), 5))
    kinds = np.repeat(groups, sizes)
    coefficients = generator.normal(size=5)
    targets = np.where(kinds == 0, rows @ coefficients, -(rows @ coefficients)) + 0.1 * generator.normal(size=len(rows))
    bounds = np.cumsum([0, *sizes])
    return table(rows, targets), [np.arange(a, b) for a, b in pairwise(bounds)], groups


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("signature", ["update", "last-layer"])
def test_planted_kinds_are_found_averaged_and_better_than_one_model_for_all(seed: int, signature: str) -> None:
    own, parts, groups = planted(seed)
    start = get_state(model_for(own.task))
    updates = []
    for client, part in enumerate(parts):
        data = own.examples(part)
        model, _ = trained(data, own.task, client)
        told = make_signature(model_for(own.task), data, CPU, own.task)
        updates.append(ClientUpdate(f"client-{client}", start, get_state(model), len(part), told))

    kind = SIGNATURES[signature]
    assert kind.from_update is not None
    points = embed(kind.gram([kind.from_update(update) for update in updates]))
    clusters = CLUSTERERS["agglomerative"](0, seed).fit_predict(points)
    assert adjusted_rand_score(groups, clusters) == 1.0

    members = {k: [u for u, own in zip(updates, clusters, strict=True) if own == k] for k in set(clusters.tolist())}
    experts, average = weighted_averages(updates, members)
    for k, cluster in members.items():
        for name, tensor in experts[k].items():
            stacked = [update.state[name].double().numpy() for update in cluster]
            expected = np.average(stacked, axis=0, weights=[update.num_examples for update in cluster])
            np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)

    def at(state: State, client: int) -> Evaluation:
        model = model_for(own.task)
        fill(model, state)
        return evaluate(own.task, model, own.examples(parts[client]), CPU)

    for client, k in enumerate(clusters.tolist()):
        variance = float(own.examples(parts[client]).y.var(correction=0))
        assert at(experts[k], client).loss < 0.2 * variance < at(average, client).loss


# --- what else asks the task -----------------------------------------------------------------------


def test_all_examples_are_one_stratum(diabetes: Table) -> None:
    data, model = diabetes.examples(np.arange(30)), model_for(diabetes.task)
    features = predict_logits(model.body, data.x, CPU).numpy()
    signature = make_signature(model, data, CPU, diabetes.task)
    assert signature.label_counts.tolist() == [30.0]
    np.testing.assert_allclose(signature.prototypes.numpy(), features.mean(0, keepdims=True), atol=1e-6)
    described = DESCRIPTIONS["initial-prototypes"](model, data, CPU, diabetes.task, True)
    expected = [*(features.mean(0) / np.linalg.norm(features.mean(0))), 1.0]
    np.testing.assert_allclose(described.numpy(), [np.array(expected) / np.sqrt(2)], atol=1e-6)


def test_a_loss_is_released_in_units_of_knowing_nothing(diabetes: Table) -> None:
    """A fit is released up to twice the loss of the mean; the noise is too small to be seen."""
    rules = NoisyRelease(ClientConfig(privacy="dp", dp_noise=1e-9), seeded("test"))
    reply = EvaluateReply(9, 0.5, 1.0, 0.5, universal_fit=7.0, expert_fit=0.3)
    told = rules.evaluation(reply, diabetes.task)
    assert told.universal_fit == pytest.approx(2.0, abs=1e-6)
    assert told.expert_fit == pytest.approx(0.3, abs=1e-6)
    signature = rules.signature(model_for(diabetes.task), diabetes.examples(np.arange(30)), CPU, diabetes.task)
    assert signature.label_counts.tolist() == [pytest.approx(30.0, abs=1.0)]
    assert signature.prototypes.shape == (1, 16)


def test_the_balanced_loss_is_refused(diabetes: Table) -> None:
    balanced = LocalObjective("balanced")
    assert output_shift(diabetes.task, PLAIN, torch.zeros(3, 1)) is None
    with pytest.raises(ConfigError, match="^local-loss: got 'balanced'; the task has no classes, use cross-entropy$"):
        trained(diabetes.examples(np.arange(9)), diabetes.task, objective=balanced)


def test_a_built_in_network_takes_rows() -> None:
    check_networks(["mlp"], (10,), 1)
    assert build_model("mlp", (10,), 2)(torch.zeros(3, 10)).shape == (3, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: Regression((), (1,), (0.0,), (1.0,), (), ()), "the targets are \\(\\); expected one or more"),
        (lambda: Regression(("a", "a"), (1,), (0.0,), (1.0,), (0.0,) * 2, (1.0,) * 2), "each once"),
        (lambda: Regression(("a",), (2,), (0.0,), (1.0,), (0.0,), (1.0,)), "1 means and 1 deviations of inputs"),
        (lambda: Regression(("a",), (1,), (0.0,), (0.0,), (0.0,), (1.0,)), "not those of inputs"),
        (lambda: Regression(("a",), (1,), (0.0,), (1.0,), (0.0,), (float("nan"),)), "not those of targets"),
    ],
)
def test_what_is_no_regression_is_refused(change: Callable[[], Regression], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        change()


def test_targets_are_never_broadcast(diabetes: Table) -> None:
    with pytest.raises(ValueError, match=r"the targets are \(3, 2\); expected \(examples, 1\)"):
        diabetes.task.standardise(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"the outputs are \(3, 1\) and the targets \(3,\)"):
        diabetes.task.loss.mean(torch.zeros(3, 1), torch.zeros(3))
