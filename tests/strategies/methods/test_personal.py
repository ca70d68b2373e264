"""Methods whose clients keep a model, or a part of one, against plain loops."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from plain_loops import CLIENTS, CONFIG, EPOCHS, RATE, ROUNDS, carried_out, gradients, initial, trained, weighted
from safetensors.torch import load_file

from client_app.memory import memory_of
from client_app.store import ClientStore
from disue.data import build_federation
from disue.errors import ConfigError
from disue.models import State, build_model
from disue.naming import client_name
from strategies.flower import FederatedStrategy
from strategies.methods.ditto import Ditto
from strategies.methods.fedrep import FedRep

WEIGHT = 0.7


def dittos_by_a_loop(rounds: int) -> tuple[State, list[State]]:
    """Return the shared model and the personal ones."""
    shared, own = initial(), [initial()] * CLIENTS
    for _ in range(rounds):
        for i in range(CLIENTS):
            for _ in range(EPOCHS):
                gradient = gradients(own[i], i)
                own[i] = {n: t - RATE * (gradient[n] + WEIGHT * (t - shared[n])) for n, t in own[i].items()}
        shared = weighted([trained(shared, i) for i in range(CLIENTS)])
    return shared, own


def fedreps_by_a_loop(rounds: int, head_epochs: int) -> tuple[State, list[State]]:
    """Return the body with the head that the run began with, and every client's head on it."""
    heads = [head(initial())] * CLIENTS
    shared = initial()
    for _ in range(rounds):
        ends = []
        for i in range(CLIENTS):
            state = shared | heads[i]
            for part, epochs in ((head, head_epochs), (body, EPOCHS)) if head_epochs else ((dict, EPOCHS),):
                for _ in range(epochs):
                    gradient = gradients(state, i)
                    state = state | {n: t - RATE * gradient[n] for n, t in part(state).items()}
            heads[i] = head(state)
            ends.append(state | head(initial()))
        shared = weighted(ends)
    return shared, [shared | own for own in heads]


def head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith("head.")}


def body(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def name_of(client: int) -> str:
    return client_name({"partition-id": client})


def kept(place: Path, kind: str, client: int) -> State:
    """Return what a client keeps after all rounds but the last, with which it would be forgotten."""
    store = ClientStore(Context(1, 1, {}, RecordDict(), {}), name_of(client), "0123456789abcdef", str(place))
    found = store.read(kind, ROUNDS, memory_of(kind).part(initial()))
    assert found is not None
    return found


def close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def accuracies(strategy: FederatedStrategy, which: str) -> list[float]:
    return [getattr(strategy.stats.evaluations[name_of(i)], which) for i in range(CLIENTS)]


def measured(states: list[State]) -> list[float]:
    """Return the accuracy of each client's model on its test data."""
    model, found = build_model("mlp", (1, 8, 8), 10), []
    for i, state in enumerate(states):
        model.load_state_dict(state)
        test = build_federation(CONFIG, CLIENTS).client(i).test
        found.append(float((model(test.x).argmax(dim=1) == test.y).float().mean()))
    return found


@pytest.mark.parametrize("per_node", [1, 2])
def test_ditto_is_the_papers_and_a_client_uses_its_own_model(tmp_path: Path, per_node: int) -> None:
    shared, own = dittos_by_a_loop(ROUNDS - 1)
    method = Ditto("mlp", WEIGHT)
    strategy = carried_out(method, (1, ROUNDS - 1), per_node, tmp_path)
    close(strategy.reached().universals["mlp"], shared)
    for i in range(CLIENTS):
        close(kept(tmp_path, "personal-model", i), own[i])
    assert accuracies(strategy, "expert_accuracy") == pytest.approx(measured(own))
    assert accuracies(strategy, "universal_accuracy") == pytest.approx(measured([shared] * CLIENTS))
    assert measured(own) != measured([shared] * CLIENTS)
    carried_out(method, (1, 2, ROUNDS), place=tmp_path)
    assert list(tmp_path.iterdir()) == []  # it is forgotten with the run


def test_ditto_shares_what_fedavg_shares_bit_for_bit_and_without_its_term_a_client_is_alone(run) -> None:  # type: ignore[no-untyped-def]
    settings = {"batch_size": 10**6, "local_epochs": 3, "learning_rate": 0.1}
    ditto, fedavg, local = (run(method=method, **settings) for method in ("ditto", "fedavg", "local"))
    same(ditto, fedavg)
    assert ditto.summary["expert_accuracy"] > ditto.summary["universal_accuracy"]
    assert ditto.summary["client_steps"] == 2 * fedavg.summary["client_steps"]
    assert ditto.summary["bytes_up"] == fedavg.summary["bytes_up"]
    alone = run(method="ditto", ditto_lambda=0.0, **settings)
    same(alone, fedavg)
    assert alone.summary["expert_accuracy"] == local.summary["expert_accuracy"] != ditto.summary["expert_accuracy"]


@pytest.mark.parametrize("head_epochs", [0, 3])
def test_fedrep_is_the_papers_and_without_epochs_for_the_head_fedper(tmp_path: Path, head_epochs: int) -> None:
    shared, own = fedreps_by_a_loop(ROUNDS - 1, head_epochs)
    strategy = carried_out(FedRep("mlp", head_epochs), (1, ROUNDS - 1), place=tmp_path)
    close(strategy.reached().universals["mlp"], shared)
    for i in range(CLIENTS):
        close(kept(tmp_path, "personal-head", i), head(own[i]))
    assert accuracies(strategy, "expert_accuracy") == pytest.approx(measured(own))
    assert all(torch.allclose(shared[name], tensor, atol=1e-6) for name, tensor in head(initial()).items())


def test_a_client_that_has_not_trained_uses_what_it_is_sent(run) -> None:  # type: ignore[no-untyped-def]
    directory = run(clients=6, method="ditto", fraction_train=0.5, num_server_rounds=1).directory
    with (directory / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["expert_accuracy"] == row["universal_accuracy"]]) == 3


@pytest.mark.parametrize("method", ["ditto", "fedrep"])
def test_sums_are_enough_and_the_rest_stays_with_the_client(run, method: str) -> None:  # type: ignore[no-untyped-def]
    plain, secure = (run(method=method, privacy=privacy) for privacy in ("plain", "secure"))
    models = [load_file(own.directory / "universal.safetensors") for own in (plain, secure)]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert secure.summary["expert_accuracy"] == pytest.approx(plain.summary["expert_accuracy"], abs=0.06)  # rounded


@pytest.mark.parametrize("method", ["ditto", "fedrep", "scaffold"])
def test_what_a_client_keeps_is_no_release(run, method: str) -> None:  # type: ignore[no-untyped-def]
    own, fedavg = (run(method=name, privacy="dp").summary for name in (method, "fedavg"))
    assert (own["releases"], own["epsilon"]) == (fedavg["releases"], fedavg["epsilon"])


def test_clients_that_train_in_parts_train_alone(run) -> None:  # type: ignore[no-untyped-def]
    together = run(method="fedrep", clients_per_node=3, clients_at_once=3)
    same(together, run(method="fedrep"))
    assert together.summary["client_steps"] == run(method="fedrep", clients_per_node=3).summary["client_steps"]


@pytest.mark.parametrize("method", ["ditto", "fedrep"])
def test_clients_have_one_architecture(run: Callable[..., Any], method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"client-models: got 'lenet' beside model 'mlp'; method '{method}' needs one"
    ):
        run(method=method, client_models="mlp,lenet")


def same(first: Any, second: Any) -> None:
    models = [load_file(own.directory / "universal.safetensors") for own in (first, second)]
    assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())
