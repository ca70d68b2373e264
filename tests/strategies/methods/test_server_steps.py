"""Steps of the server, against plain loops."""

from pathlib import Path

import pytest
import torch
from plain_loops import CLIENTS, ROUNDS, carried_out, initial, trained, weighted
from safetensors.torch import load_file
from tests_support import calls_of

from disue.errors import ConfigError
from strategies.aggregation.server_optimizer import ServerOptimizer, adam
from strategies.methods.fedadam import FedAdam
from strategies.methods.fedavgm import FedAvgM


def test_fedavgm_is_the_papers_also_after_a_break() -> None:
    state = carried_out(FedAvgM("mlp", momentum=0.7, learning_rate=0.5), rounds=(1, ROUNDS)).reached()
    model = {name: tensor.double() for name, tensor in initial().items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    for _ in range(ROUNDS):
        start = {name: tensor.float() for name, tensor in model.items()}
        average = weighted([trained(start, i) for i in range(CLIENTS)])
        velocity = {name: 0.7 * velocity[name] + model[name] - average[name].double() for name in model}
        model = {name: model[name] - 0.5 * velocity[name] for name in model}
    for name, tensor in state.universals["mlp"].items():
        torch.testing.assert_close(tensor, model[name].float(), rtol=1e-4, atol=1e-6)


def test_fedadam_is_the_papers_also_after_a_break() -> None:
    state = carried_out(FedAdam("mlp", ServerOptimizer(adam, learning_rate=0.01)), rounds=(1, ROUNDS)).reached()
    model = {name: tensor.double() for name, tensor in initial().items()}
    means = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    squares = {name: torch.full_like(tensor, 1e-6) for name, tensor in model.items()}
    for _ in range(ROUNDS):
        start = {name: tensor.float() for name, tensor in model.items()}
        average = weighted([trained(start, i) for i in range(CLIENTS)])
        for name in model:
            change = average[name].double() - model[name]
            means[name] = 0.9 * means[name] + 0.1 * change
            squares[name] = 0.99 * squares[name] + 0.01 * change**2
            model[name] = model[name] + 0.01 * means[name] / (squares[name].sqrt() + 1e-3)
    for name, tensor in state.universals["mlp"].items():
        torch.testing.assert_close(tensor, model[name].float(), rtol=1e-3, atol=1e-5)


def test_the_keys_of_fedadam_reach_its_optimizer(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, ServerOptimizer, "step")
    run(method="fedadam", num_server_rounds=1)
    run(method="fedadam", num_server_rounds=1, server_learning_rate=0.1, server_momentum=0.5, server_decay=0.8)
    assert [step.of for step in steps] == [
        ServerOptimizer(adam, 0.03, 0.9, 0.99, 1e-3),
        ServerOptimizer(adam, 0.1, 0.5, 0.8, 1e-3),
    ]


def test_without_momentum_fedavgm_is_fedavg_bit_for_bit_and_with_it_it_is_not(run) -> None:  # type: ignore[no-untyped-def]
    def universal(**settings: object) -> dict[str, torch.Tensor]:
        directory: Path = run(**settings).directory
        return load_file(directory / "universal.safetensors")

    fedavg, still = universal(method="fedavg"), universal(method="fedavgm", server_momentum=0.0)
    assert all(torch.equal(still[name], tensor) for name, tensor in fedavg.items())
    default = universal(method="fedavgm")
    assert not torch.equal(default["head.weight"], fedavg["head.weight"])
    same = universal(method="fedavgm", server_momentum=0.9, server_learning_rate=1.0)
    assert all(torch.equal(same[name], tensor) for name, tensor in default.items())


@pytest.mark.parametrize("method", ["fedavgm", "fedadam"])
def test_clients_have_one_architecture(run, method: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        ConfigError, match=f"client-models: got 'lenet' beside model 'mlp'; method '{method}' needs one"
    ):
        run(method=method, client_models="mlp,lenet")


@pytest.mark.parametrize("method", ["fedavgm", "fedadam"])
def test_sums_are_enough(run, method: str) -> None:  # type: ignore[no-untyped-def]
    plain, secure = (run(method=method, privacy=privacy) for privacy in ("plain", "secure"))
    models = [load_file(own.directory / "universal.safetensors") for own in (plain, secure)]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-3, atol=1e-4)
