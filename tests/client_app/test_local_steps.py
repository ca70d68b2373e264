"""With which steps clients train: by a run's settings."""

import pytest
import torch
from tests_support import calls_of
from torch.nn.functional import cross_entropy

from client_app.train import train
from disue.config import ClientConfig
from disue.data import Examples, build_federation
from disue.errors import ConfigError
from disue.models import State, build_model, fill, get_state, subtract
from disue.objective import PLAIN
from disue.runs.reading import load_run
from disue.tasks import ImageClassification
from strategies.methods.scaffold import Scaffold

CPU = torch.device("cpu")
TASK = ImageClassification(("a", "b", "c"), (1, 8, 8), (0.0,), (1.0,))


def moved(server_round: int = 1, **settings: object) -> State:
    """Return by how much an epoch moves a model."""
    generator = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 3)
    model = build_model("mlp", (1, 8, 8), 3)
    before = get_state(model)
    config = ClientConfig(local_epochs=1, batch_size=12, **settings)  # type: ignore[arg-type]
    train(model, examples, config, PLAIN, torch.Generator().manual_seed(0), CPU, TASK, server_round=server_round)
    return subtract(get_state(model), before)


def length(state: State) -> float:
    return float(torch.cat([tensor.flatten() for tensor in state.values()]).norm())


def test_the_learning_rate_falls_from_round_to_round() -> None:
    first, third = moved(learning_rate_decay=0.5), moved(server_round=3, learning_rate_decay=0.5)
    for name, tensor in first.items():
        torch.testing.assert_close(third[name], 0.25 * tensor, atol=1e-7, rtol=1e-4)
    assert all(torch.equal(tensor, moved(server_round=3)[name]) for name, tensor in moved().items())


def test_a_step_is_no_longer_than_the_clipped_gradients() -> None:
    assert length(moved(clip_gradients=0.01, learning_rate=1.0)) == pytest.approx(0.01, rel=1e-3)
    assert length(moved(learning_rate=1.0)) > 0.1


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_of_adam_is_of_the_learning_rate(name: str) -> None:
    step = moved(optimizer=name, learning_rate=0.001)["head.bias"]
    torch.testing.assert_close(step.abs(), torch.full((3,), 0.001), rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("settings", [{"optimizer": "adamw", "learning_rate": 0.003}, {"clip_gradients": 1.0}])
def test_a_node_of_several_comes_to_what_each_comes_to_alone(run, settings: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    alone, together = (
        run(clients=4, method="fedavg", clients_per_node=count, clients_at_once=count, **settings) for count in (1, 4)
    )
    states = [get_state(load_run(own.directory).universal.module.network) for own in (alone, together)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"clip_gradients": 1.0}])
def test_a_method_that_goes_by_the_steps_of_sgd_refuses_others(run, settings: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    (key,) = settings
    with pytest.raises(ConfigError, match=f"^{key.replace('_', '-')}: got .*; method 'scaffold' goes by the steps"):
        run(clients=4, method="scaffold", **settings)


def test_control_variates_are_gradients_whatever_the_rate_of_the_round(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Of one step of all examples: after the second round c is the mean gradient of the clients' losses there."""
    steps = calls_of(monkeypatch, Scaffold, "step")
    settings = {"momentum": 0.0, "learning_rate_decay": 0.5, "batch_size": 10_000, "local_epochs": 1}
    result = run(clients=3, method="scaffold", num_server_rounds=2, **settings)
    federation = build_federation(result.config, 3)
    model = build_model("mlp", federation.task.shape, 10)
    fill(model, steps[0].result.state.universals["mlp"])
    losses = [cross_entropy(model(own.x), own.y) for own in (federation.client(i).train for i in range(3))]
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    for found, gradient in zip(steps[1].result.state.variate.values(), expected, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-3)
