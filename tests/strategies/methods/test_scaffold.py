"""SCAFFOLD against a plain loop, and what it does beyond the paper."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_loops import CLIENTS, EPOCHS, RATE, ROUNDS, carried_out, gradients, initial, weighted
from safetensors.torch import load_file

from disue.errors import ConfigError
from disue.gradients import mean_gradient
from disue.models import State
from strategies.aggregation.caps import Caps
from strategies.methods.fedavg import FedAvg
from strategies.methods.scaffold import Scaffold, ScaffoldState
from strategies.rounds.round import Round
from strategies.updates import ClientUpdate


def with_rate(learning_rate: float) -> Callable[[State, State, int, int], State]:
    """Return what `Scaffold` takes, for a learning rate that is the same in all rounds."""
    return lambda start, end, steps, server_round: mean_gradient(start, end, steps, learning_rate)


WHOLE = with_rate(1.0)


def by_a_loop(rate: float) -> tuple[State, State]:
    """Return the model and the variate after all rounds; ``rate``: the server's."""
    model = initial()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    shared, own = zeros, [zeros] * CLIENTS
    for _ in range(ROUNDS):
        ends, fresh = [], []
        for i in range(CLIENTS):
            state = model
            for _ in range(EPOCHS):
                gradient = gradients(state, i)
                state = {n: t - RATE * (gradient[n] - own[i][n] + shared[n]) for n, t in state.items()}
            ends.append(state)
            fresh.append({n: own[i][n] - shared[n] + (model[n] - state[n]) / (EPOCHS * RATE) for n in model})
        shared = {n: shared[n] + sum(fresh[i][n] - own[i][n] for i in range(CLIENTS)) / CLIENTS for n in model}
        average = weighted(ends)
        own, model = fresh, {n: model[n] + rate * (average[n] - model[n]) for n in model}
    return model, shared


@pytest.mark.parametrize(
    ("rounds", "per_node", "rate"),
    [((ROUNDS,), 1, 1.0), ((ROUNDS,), 2, 1.0), ((1, 2, ROUNDS), 1, 1.0), ((1, ROUNDS), 2, 1.0), ((ROUNDS,), 1, 0.5)],
    ids=str,
)
def test_it_is_the_papers_in_one_go_packed_and_after_breaks(
    tmp_path: Path, rounds: tuple[int, ...], per_node: int, rate: float
) -> None:
    place = tmp_path if len(rounds) > 1 else None
    state = carried_out(Scaffold("mlp", with_rate(RATE), learning_rate=rate), rounds, per_node, place).reached()
    assert isinstance(state, ScaffoldState)
    model, variate = by_a_loop(rate)
    for name in model:
        torch.testing.assert_close(state.universals["mlp"][name], model[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.variate[name], variate[name], rtol=1e-3, atol=1e-4)
    assert list(tmp_path.iterdir()) == []  # it is forgotten with the run
    plain = carried_out(FedAvg("mlp")).reached()
    assert not torch.allclose(plain.universals["mlp"]["head.weight"], model["head.weight"], atol=1e-3)


def test_its_first_round_is_fedavgs_bit_for_bit_and_its_second_is_not(run) -> None:  # type: ignore[no-untyped-def]
    for rounds in (1, 2):
        own, other = (
            load_file(run(method=method, num_server_rounds=rounds).directory / "universal.safetensors")
            for method in ("scaffold", "fedavg")
        )
        assert all(torch.equal(own[name], tensor) for name, tensor in other.items()) == (rounds == 1)


def moved(method: Scaffold, *gradients: float, steps: int = 1, clients: int = 2) -> float:
    """Return the variate after a round of clients of one parameter that followed these gradients, with a rate of 1."""
    start = {"w": torch.tensor([0.0])}
    updates = [
        ClientUpdate(f"client-{i}", start, {"w": torch.tensor([-gradient])}, num_examples=5, steps=steps)
        for i, gradient in enumerate(gradients)
    ]
    state = replace(method.begin(start), variate={"w": torch.tensor([1.0])})
    models = {f"client-{i}": "mlp" for i in range(clients)}
    return float(method.step(state, updates, Round(1, models)).state.variate["w"])


def test_of_some_clients_the_variate_moves_by_their_share() -> None:
    method = Scaffold("mlp", WHOLE)
    assert moved(method, 3.0, 5.0) == pytest.approx(4.0)
    assert moved(method, 3.0, 5.0, clients=8) == pytest.approx(1.0 + 2 / 8 * (4.0 - 1.0))
    assert moved(method, 3.0, 5.0, steps=0) == pytest.approx(4.0)  # as little as one


def test_who_is_bounded_is_named_once(messages: list[str]) -> None:
    method = Scaffold("mlp", WHOLE, caps=Caps(10.0))
    for _ in range(2):
        moved(method, 1.0, 1.0, 1e6, clients=3)
    assert [line for line in messages if "gradient" in line] == [
        "client-2 says a gradient's length of 1e+06; it counts as 10, bounded by the other clients'"
    ]


def test_no_client_says_that_its_gradient_is_much_longer_than_the_others() -> None:
    honest = [1.0, 1.0, 1.0, 1.0]
    assert moved(Scaffold("mlp", WHOLE), *honest, 1e6, clients=5) > 1e5
    assert moved(Scaffold("mlp", WHOLE, caps=Caps(10.0)), *honest, 1e6, clients=5) == pytest.approx((4 + 10) / 5)


def test_the_server_must_see_single_updates_of_one_architecture(run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="method: got 'scaffold'; the server gets sums only"):
        run(method="scaffold", privacy="secure")
    with pytest.raises(ConfigError, match="client-models: got 'lenet' beside model 'mlp'; method 'scaffold' needs one"):
        run(method="scaffold", client_models="mlp,lenet")
