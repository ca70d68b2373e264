"""DisUE on a tabular regression with two targets: as many outputs, one stratum, no priors and no evidence.

The numbers are those of numpy, by hand.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from client_app.describe import make_signature
from client_app.train import train
from disue.data import Examples
from disue.errors import ConfigError
from disue.metrics import predict_logits
from disue.models import State, build_model, fill, get_state, same_model
from disue.objective import PLAIN
from disue.seeding import torch_rng
from disue.signature import NOTHING
from disue.tasks import Regression
from server_app.build import make_strategy
from server_app.config import RunConfig
from strategies.aggregation.caps import Caps
from strategies.clustering.assignment import Planted
from strategies.distillation.distiller import Distiller
from strategies.distillation.prototypes import in_common_units
from strategies.distillation.server import FixedProxy, Server
from strategies.distillation.teachers import LEAST_SHARE, TEACHERS
from strategies.distillation.universal import UniversalDistillation
from strategies.methods.base import Step
from strategies.methods.disue import DisUE
from strategies.methods.disue_settings import ClientsTell, DisUESettings
from strategies.methods.disue_state import DisUEState
from strategies.methods.parts import Parts
from strategies.rounds.collecting import PlainCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.round import Round
from strategies.teams import Team
from strategies.updates import ClientUpdate

CPU = torch.device("cpu")
COLUMNS = 5
TASK = Regression(("a", "b"), (COLUMNS,), (0.0,) * COLUMNS, (1.0,) * COLUMNS, (0.0,) * 2, (1.0,) * 2)
CONFIG = RunConfig(local_epochs=20, batch_size=16, learning_rate=0.05)
CLIENTS = 4
MODELS = {f"client-{client}": "mlp" for client in range(CLIENTS)}


@dataclass(frozen=True)
class Rows:
    """Data of the task that the server has."""

    task: Regression = TASK
    has_groups: bool = False

    def global_test(self) -> Examples | None:
        return None

    def proxy(self) -> Tensor:
        return rows_of(7)


def rows_of(seed: int, count: int = 100) -> Tensor:
    """Return rows of a table; those of even seeds lie on another side than those of odd ones."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, COLUMNS, generator=g) + (1.0 if seed % 2 else -1.0)


def made(server: Server) -> list[ClientUpdate]:
    """Return updates of clients that have one of two linear functions each."""
    updates = []
    for client in range(CLIENTS):
        x = rows_of(client)
        coefficients = torch.randn(COLUMNS, 2, generator=torch.Generator().manual_seed(client % 2))
        data = Examples(x, x @ coefficients / 4.0)
        model = server.build("mlp")
        told = make_signature(model, data, CPU, TASK)
        train(model, data, CONFIG, PLAIN, torch.Generator().manual_seed(client), CPU, TASK)
        updates.append(ClientUpdate(f"client-{client}", server.initial("mlp"), get_state(model), len(x), told))
    return updates


def stepped(round: Round, comparison: bool = False) -> tuple[DisUE, Step[DisUEState]]:
    """Return DisUE, and what it makes of a round of these clients in their two clusters."""
    server = Server(TASK, "mlp", CPU, 0)
    proxy = FixedProxy(torch.cat([rows_of(8), rows_of(9)]))
    distillation = UniversalDistillation(server, proxy, TEACHERS["prototype"], Distiller(steps=200))
    method = DisUE(Planted(), distillation, DisUESettings(), clients_tell=ClientsTell(comparison=comparison))
    updates = made(server)
    clusters = {update.name: i % 2 for i, update in enumerate(updates)}
    state = replace(method.begin(server.initial("mlp")), clusters=clusters)
    return method, method.step(state, updates, round)


@pytest.fixture(scope="module")
def taught() -> tuple[DisUE, Step[DisUEState]]:
    return stepped(Round(1, MODELS))


def test_the_student_learns_the_experts_outputs_weighted_by_how_near_their_clients_are(taught) -> None:  # type: ignore[no-untyped-def]
    method, (state, averages, metrics) = taught[0], (taught[1].state, taught[1].averages, taught[1].metrics)
    proxy = method.proxy
    experts = [state.experts[Team(k, "mlp")] for k in (0, 1)]
    model = build_model("mlp", TASK.shape, 2)

    def said(own: State) -> np.ndarray:
        fill(model, own)
        return predict_logits(model, proxy, CPU).double().numpy()

    fill(model, state.initial)
    features = predict_logits(model.body, proxy, CPU)
    told = [[own for name, own in state.knowledge.told.items() if state.clusters[name] == k] for k in (0, 1)]
    squared = [torch.cdist(features, torch.cat([one.prototypes for one in own])).square() for own in told]
    near = in_common_units([own.amin(dim=1, keepdim=True) for own in squared], [features] * 2)
    assert near.shape == (2, 200, 1)
    gate = np.exp(-near[..., 0].double().numpy())
    gate[gate < LEAST_SHARE * gate.max(axis=0)] = 0.0
    vote = sum((gate / gate.sum(axis=0))[k][:, None] * said(experts[k]) for k in (0, 1))
    held_out = torch.randperm(200, generator=torch_rng(0, "distil", 1))[:40].numpy()
    student, average = (np.mean((said(own["mlp"]) - vote)[held_out] ** 2) for own in (state.universals, averages))
    assert student < 0.1 * average
    assert metrics["divergence_student"] == pytest.approx(student, rel=1e-4)
    assert metrics["divergence_average"] == pytest.approx(average, rel=1e-4)
    assert metrics["guard_kept_average"] == 0


def test_there_are_no_priors_and_no_evidence(taught) -> None:  # type: ignore[no-untyped-def]
    method, step = taught
    state = step.state
    assert not state.priors
    assert not state.warned
    assert not [key for key in step.metrics if "evidence" in key]
    gate = method.gate(state, {})
    assert {own.log_prior for own in gate.experts.values()} == {None}


def test_who_taught_is_told_for_the_one_stratum(taught) -> None:  # type: ignore[no-untyped-def]
    weights, counts = taught[1].state.votes.by_stratum(TASK.num_strata)
    assert counts.tolist() == [200]
    assert weights.shape == (2, 1)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_what_clients_say_of_both_models_is_bounded_by_the_loss_of_saying_the_mean() -> None:
    asked: list[float] = []

    def compare(students: object, averages: object, caps: Caps, loss_unit: float) -> dict[str, float]:
        asked.append(loss_unit)
        return {"mlp": 0.0}

    _, step = stepped(Round(1, MODELS, best_shares=compare), comparison=True)
    assert asked == [1.0]
    assert same_model(step.state.universals["mlp"], step.averages["mlp"])
    assert (step.metrics["guard_kept_average"], step.metrics["student_share"]) == (1, 0.0)


# --- what a run's settings make of it --------------------------------------------------------------


@pytest.mark.parametrize("proxy", ["generator", "dataset:digits", "path:/none"])
def test_proxy_sets_of_pictures_are_refused(proxy: str) -> None:
    with pytest.raises(ConfigError, match=rf"^proxy: got '{proxy}', which is of images; .* \(shape 5\), use holdout$"):
        Parts(RunConfig(proxy=proxy), Rows(), CPU).proxy()


def test_the_strategy_expects_one_prototype_of_each_client() -> None:
    config = RunConfig(model="mlp", proxy="holdout", signature="initial-prototypes")
    strategy = make_strategy(config, ClientRegistry(0), Rows(), CPU)
    assert strategy.descriptions.shape == (1, 65)
    assert isinstance(strategy.collector, PlainCollector)
    assert strategy.collector.parts.num_strata == 1
    fedavg = make_strategy(RunConfig(model="mlp", method="fedavg"), ClientRegistry(0), Rows(), CPU)
    assert isinstance(fedavg.collector, PlainCollector)
    assert fedavg.collector.parts == NOTHING
