"""Methods of others in sketch, against plain loops: state at a client and an optimiser at the server have a place."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch.nn import functional as F

from client_app.app import app as client_app
from disue.data import build_federation
from disue.models import State, build_model, get_state
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.checkpoint import packed, unpacked
from server_app.config import RunConfig
from strategies.aggregation.server_optimizer import ServerOptimizer, ServerOptimizerState, adam
from strategies.flower import FederatedStrategy
from strategies.methods.base import Method, MethodState, Step
from strategies.methods.fedavg import FedAvg
from strategies.rounds.packing import seated
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.round import Round
from strategies.rounds.stats import Participation
from strategies.stored import stored
from strategies.updates import Contribution
from tests.sketches import FedPer, Scaffold, ScaffoldState

CLIENTS, ROUNDS, EPOCHS, RATE = 4, 3, 2, 0.1
CONFIG = RunConfig.from_flower(
    {
        "model": "mlp",
        "local-epochs": EPOCHS,
        "batch-size": 10**6,
        "learning-rate": RATE,
        "momentum": 0.0,
        "scenario": "label-groups",
        "num-groups": 2,
        "train-examples": 40,
        "num-server-rounds": ROUNDS,
    }
)
"""One batch is all of a client's examples, so that their order does not matter."""


@stored
@dataclass(frozen=True)
class FedAdamState(MethodState):
    optimizer: ServerOptimizerState = field(default_factory=ServerOptimizerState)


class FedAdam(Method[FedAdamState]):
    """Reddi et al. 2021, algorithm 2."""

    state_type = FedAdamState
    optimizer = ServerOptimizer(adam, learning_rate=0.01)

    def step(self, state: FedAdamState, updates: Sequence[Contribution], round: Round) -> Step[FedAdamState]:
        average = self.aggregator(updates)
        model, optimizer = self.optimizer.step(state.optimizer, state.universals[self.main], average)
        return Step(replace(state, universals={self.main: model}, optimizer=optimizer), averages={self.main: average})


def initial() -> State:
    return get_state(build_model("mlp", (1, 8, 8), 10, CONFIG.seed))


def carried_out(
    method: Method, rounds: Sequence[int] = (ROUNDS,), per_node: int = 1, place: Path | None = None
) -> FederatedStrategy:
    """Run up to each of these rounds, every time with processes that know nothing of those before."""
    config = CONFIG.model_copy(update={"clients_per_node": per_node})
    more = {} if place is None else {"state-path": str(place)}
    nodes = [node | more for node in simulated_nodes(CLIENTS // per_node)]
    strategy, arrays, done = None, ArrayRecord(initial()), 0
    for last in rounds:
        grid = seated(InlineGrid(client_app, config.to_flower(), nodes), per_node)
        registry = ClientRegistry(seed=0)
        registry.gather(grid, CLIENTS, 1.0)
        fresh = FederatedStrategy(registry, Participation(num_rounds=ROUNDS), method, run="0123456789abcdef")
        if strategy is not None:  # as a checkpoint has it
            fresh.state = unpacked(packed(strategy.state))
        strategy = fresh
        strategy.start(grid, arrays, num_rounds=last, first_round=done + 1)
        done = last
    assert strategy is not None
    return strategy


def gradients(state: State, client: int) -> State:
    data = build_federation(CONFIG, CLIENTS).client(client).train
    model = build_model("mlp", (1, 8, 8), 10)
    model.load_state_dict(state)
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(F.cross_entropy(model(data.x), data.y), list(model.parameters()))
    return dict(zip(names, found, strict=True))


def weighted(states: Sequence[State]) -> State:
    sizes = [len(build_federation(CONFIG, CLIENTS).client(i).train) for i in range(CLIENTS)]
    return {
        name: torch.from_numpy(np.average([s[name].numpy() for s in states], axis=0, weights=sizes)).float()
        for name in states[0]
    }


def scaffold_by_a_loop() -> tuple[State, State]:
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
        own, model = fresh, weighted(ends)
    return model, shared


@pytest.mark.parametrize(
    ("rounds", "per_node"), [((ROUNDS,), 1), ((ROUNDS,), 2), ((1, 2, ROUNDS), 1), ((1, ROUNDS), 2)], ids=str
)
def test_scaffold_is_the_papers_in_one_go_packed_and_after_breaks(
    tmp_path: Path, rounds: tuple[int, ...], per_node: int
) -> None:
    place = tmp_path if len(rounds) > 1 else None
    state = carried_out(Scaffold("mlp", learning_rate=RATE), rounds, per_node, place).reached()
    assert isinstance(state, ScaffoldState)
    model, variate = scaffold_by_a_loop()
    for name in model:
        torch.testing.assert_close(state.universals["mlp"][name], model[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.variate[name], variate[name], rtol=1e-3, atol=1e-4)
    assert list(tmp_path.iterdir()) == []  # it is forgotten with the run
    plain = carried_out(FedAvg("mlp")).reached()
    assert not torch.allclose(plain.universals["mlp"]["head.weight"], model["head.weight"], atol=1e-3)


def test_heads_of_their_own_stay_with_the_clients() -> None:
    state = carried_out(FedPer("mlp")).reached()
    begun = initial()
    for name, tensor in state.universals["mlp"].items():
        assert torch.allclose(tensor, begun[name], atol=1e-6) is name.startswith("head.")


def test_fedadam_is_the_papers() -> None:
    state = carried_out(FedAdam("mlp"), rounds=(1, ROUNDS)).reached()
    model = {name: tensor.double() for name, tensor in initial().items()}
    means = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    squares = {name: torch.full_like(tensor, 1e-6) for name, tensor in model.items()}
    for _ in range(ROUNDS):
        ends = []
        for i in range(CLIENTS):
            own = {name: tensor.float() for name, tensor in model.items()}
            for _ in range(EPOCHS):
                gradient = gradients(own, i)
                own = {name: tensor - RATE * gradient[name] for name, tensor in own.items()}
            ends.append(own)
        average = weighted(ends)
        for name in model:
            change = average[name].double() - model[name]
            means[name] = 0.9 * means[name] + 0.1 * change
            squares[name] = 0.99 * squares[name] + 0.01 * change**2
            model[name] = model[name] + 0.01 * means[name] / (squares[name].sqrt() + 1e-3)
    for name, tensor in state.universals["mlp"].items():
        torch.testing.assert_close(tensor, model[name].float(), rtol=1e-3, atol=1e-5)
