"""Training as papers write it: plain loops over the same clients' data, and runs of methods to compare with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch.nn import functional as F

from client_app.app import app as client_app
from disue.data import build_federation
from disue.models import State, build_model, get_state
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.checkpoint import packed, unpacked
from server_app.config import RunConfig
from strategies.flower import FederatedStrategy
from strategies.methods.base import Method
from strategies.rounds.packing import seated
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation

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


def initial() -> State:
    return get_state(build_model("mlp", (1, 8, 8), 10, CONFIG.seed))


def carried_out(
    method: Method[Any], rounds: Sequence[int] = (ROUNDS,), per_node: int = 1, place: Path | None = None
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


def weighted(states: Sequence[State], clients: Sequence[int] = range(CLIENTS)) -> State:
    """Return the mean of the models of some clients, weighted by their examples."""
    sizes = [len(build_federation(CONFIG, CLIENTS).client(i).train) for i in clients]
    return {
        name: torch.from_numpy(np.average([s[name].numpy() for s in states], axis=0, weights=sizes)).float()
        for name in states[0]
    }


def trained(state: State, client: int, epochs: int = EPOCHS) -> State:
    """Return what comes of a model by gradient descent on a client's data."""
    for _ in range(epochs):
        gradient = gradients(state, client)
        state = {name: tensor - RATE * gradient[name] for name, tensor in state.items()}
    return state
