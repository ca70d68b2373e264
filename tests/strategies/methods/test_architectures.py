"""Clients of different architectures in one federation, on the real clients."""

import csv
import json

import pytest
import torch
from flwr.app import ArrayRecord, Message
from safetensors import safe_open
from safetensors.torch import load_file
from tests_support import ChangingGrid, calls_of

from client_app.app import app as client_app
from client_app.describe import initial_prototypes
from disue.covariance import looked_at
from disue.data import build_federation
from disue.discriminant import gate_weights
from disue.metrics import evaluate
from disue.models import State, build_model, get_state
from disue.prototypes import nearest_prototypes
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.build import make_strategy
from server_app.config import RunConfig
from strategies import flower
from strategies.distillation.discriminant import discriminant_of
from strategies.distillation.ensemble import TeacherEnsemble
from strategies.distillation.server import Server
from strategies.methods.disue import DisUE
from strategies.methods.disue_state import DisUEState
from strategies.rounds.comparing import best_shares
from strategies.rounds.registry import ClientRegistry
from strategies.teams import Team

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_small_and_large_models_train_together_and_leave_all_their_artefacts(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=12, model="cnn", client_models="mlp,cnn", num_server_rounds=5, local_epochs=2)
    directory, summary = result.directory, result.summary
    assert summary["universal_accuracy"] > 0.6
    assert summary["universal_accuracy_mlp"] > 0.6
    assert summary["ari"] == 1.0  # clusters go across architectures
    assert summary["num_clusters"] == 3
    assert summary["num_teachers"] == 6
    for key in ("average", "student"):
        assert {f"divergence_{key}", f"divergence_{key}_mlp"} <= summary.keys()
    assert {path.name for path in directory.glob("universal*")} == {
        "universal.safetensors",
        "universal-mlp.safetensors",
    }
    assert {path.name for path in (directory / "experts").iterdir()} == {
        f"expert-{k}{suffix}.safetensors" for k in range(3) for suffix in ("", "-mlp")
    }
    federation = build_federation(result.config, 12)
    test = federation.global_test()
    for suffix, name in (("", "cnn"), ("-mlp", "mlp")):
        for file in (f"universal{suffix}", f"experts/expert-1{suffix}"):
            with safe_open(directory / f"{file}.safetensors", "pt") as opened:
                assert json.loads(opened.metadata()["disue"]) == {"model": name, "dataset": "digits"}
        model = build_model(name, SHAPE, 10)
        model.load_state_dict(load_file(directory / f"universal{suffix}.safetensors"))
        found = evaluate(federation.task, model, test, CPU).metrics["accuracy"]
        assert found == summary[f"universal_accuracy{suffix.replace('-', '_')}"]
    with (directory / "clients.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["model"] for row in rows] == ["mlp"] * 6 + ["cnn"] * 6
    assert list(rows[0])[:4] == ["client", "group", "model", "cluster"]
    with (directory / "teaching.csv").open() as table:
        taught = list(csv.DictReader(table))
    assert list(dict.fromkeys(row["expert"] for row in taught)) == ["0", "0-mlp", "1", "1-mlp", "2", "2-mlp"]
    for label in {row["class"] for row in taught}:
        of_class = [row for row in taught if row["class"] == label]
        total = sum(float(row["weight"]) for row in of_class)
        assert total == pytest.approx(1.0 if int(of_class[0]["samples"]) else 0.0, abs=1e-3)


def test_one_architecture_by_another_name_is_the_same_run(run) -> None:  # type: ignore[no-untyped-def]
    plain, listed = run(model="mlp"), run(model="mlp", client_models="mlp,mlp")
    for name in ("universal.safetensors", "clients.csv", "teaching.csv", "experts/expert-0.safetensors"):
        assert (plain.directory / name).read_bytes() == (listed.directory / name).read_bytes()


def test_every_student_learns_the_vote_of_all_experts(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The vote is taken here from scratch: each expert by its own model, the mean teacher, no prior correction."""
    lessons, steps = calls_of(monkeypatch, Server, "distil"), calls_of(monkeypatch, DisUE, "step")
    run(
        clients=8,
        model="cnn",
        client_models="mlp,cnn",
        teacher="mean",
        prior_correction=False,
        prototype_weight=0.0,
        num_server_rounds=1,
    )
    assert [lesson.given["model"] for lesson in lessons] == ["cnn", "mlp"]
    experts, averages = steps[0].result.state.experts, steps[0].result.averages
    assert {team.model for team in experts} == {"mlp", "cnn"}
    x = lessons[0].given["proxy"].x
    vote = torch.zeros(len(x), 10)
    for team, state in experts.items():
        model = build_model(team.model, SHAPE, 10).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            vote += model(x) / len(experts)
    for lesson in lessons:
        torch.testing.assert_close(lesson.given["targets"], vote, atol=1e-4, rtol=1e-4)
        assert lesson.given["average"] is averages[lesson.given["model"]]


def test_early_features_are_of_one_space_whatever_the_architecture(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    looked = calls_of(monkeypatch, TeacherEnsemble, "inputs")
    settings = {"scenario": "rotation", "num_groups": 2, "clusterer": "oracle"}
    result = run(clients=8, model="cnn", client_models="mlp,cnn", num_server_rounds=2, **settings)
    ensemble, federation = looked[-1].of, build_federation(result.config, 8)
    early, right = ensemble.early, []
    assert {team.model for team in ensemble.voters} == {"mlp", "cnn"}
    for team, counts, means in zip(ensemble.voters, early.counts, early.means, strict=True):
        data = [federation.client(i).train for i in range(8) if federation.client(i).group == team.cluster]
        x, y = torch.cat([own.x for own in data]), torch.cat([own.y for own in data])
        seen = ensemble.server.early_features(x, means.shape[1])
        assert counts.tolist() == torch.bincount(y, minlength=10).tolist()
        for label in range(10):
            torch.testing.assert_close(means[label], seen[y == label].mean(dim=0), atol=1e-4, rtol=1e-4)
        weights = gate_weights(early.log_densities(seen)).squeeze(2)
        of_cluster = torch.tensor([other.cluster == team.cluster for other in ensemble.voters])
        right.append(float((weights[of_cluster].sum(dim=0) > 0.5).double().mean()))
    assert min(right) > 0.9


def test_the_gate_sees_every_expert_under_the_universal_model_of_its_own_architecture(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Distances and densities here from scratch; between architectures distances differ by one factor for each."""
    looked, steps = calls_of(monkeypatch, TeacherEnsemble, "inputs"), calls_of(monkeypatch, DisUE, "step")
    run(clients=8, model="cnn", client_models="mlp,cnn", num_server_rounds=2, early_features=0, proxy_samples=0)
    distances, universals = looked[-1].result.distances, steps[-1].given["state"].universals
    ensemble, densities, x = looked[-1].of, looked[-1].result.log_densities, steps[-1].of.proxy
    ratios = []
    for k, team in enumerate(ensemble.voters):
        model = build_model(team.model, SHAPE, 10).eval()
        model.load_state_dict(universals[team.model])
        with torch.no_grad():
            features = looked_at(model.body(x))
        spread = (features - features.mean(dim=0)).square().sum(dim=1).mean()
        own = ensemble.told[team]
        counts, points = (torch.stack([getattr(s, key) for s in own]) for key in ("label_counts", "prototypes"))
        known = distances[k].isfinite()
        ratio = (distances[k] * spread / nearest_prototypes(features, counts, points))[known]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-2, atol=0.0)
        ratios.append(float(ratio.mean()))
        mates = [other for other in ensemble.voters if other.model == team.model]
        among = discriminant_of([ensemble.told[other] for other in mates], features)
        assert among.background is not None
        expected = among.log_densities(features)[mates.index(team)]
        torch.testing.assert_close(densities[k], expected, rtol=1e-3, atol=1e-2)
    assert {team.model for team in ensemble.voters} == {"mlp", "cnn"}
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3)


@pytest.mark.parametrize("initialisation", ["universal", "expert", "blend"])
def test_clients_start_from_models_of_their_own_architecture(run, monkeypatch, initialisation: str) -> None:  # type: ignore[no-untyped-def]
    share = {"universal": 0.0, "expert": 1.0, "blend": 0.25}[initialisation]
    begun = calls_of(monkeypatch, DisUE, "starts")
    result = run(clients=6, model="cnn", client_models="mlp,cnn", initialisation=initialisation, blend=0.25)
    models = {client: ("mlp", "cnn")[int(client.split("-")[1]) // 3] for client in begun[0].result}
    for client, start in begun[0].result.items():
        assert equal(start, get_state(build_model(models[client], SHAPE, 10, result.config.seed)))
    state = begun[1].given["state"]
    assert len(begun[1].result) == 6
    for client, start in begun[1].result.items():
        universal = state.plain[models[client]]
        expert = state.latest[Team(state.clusters[client], models[client])]
        for key in start:
            torch.testing.assert_close(start[key], (1 - share) * universal[key] + share * expert[key])


def test_an_architecture_that_was_not_sampled_is_taught_all_the_same(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """One client a round: the other architecture has no update, and in the first round no expert."""
    steps, lessons = calls_of(monkeypatch, DisUE, "step"), calls_of(monkeypatch, Server, "distil")
    mixed: list[dict[str, float]] = []

    def ask(*rest):  # type: ignore[no-untyped-def]
        mixed.append(best_shares(*rest))
        return mixed[-1]

    monkeypatch.setattr(flower, "best_shares", ask)
    settings = {"model": "cnn", "client_models": "mlp,cnn", "fraction_train": 0.125, "proxy_samples": 0}
    result = run(clients=8, num_server_rounds=6, seed=2, **settings)
    other_than = {"cnn": "mlp", "mlp": "cnn"}
    sampled = [step.given["round"].models[step.given["updates"][0].name] for step in steps]
    assert set(sampled) == {"cnn", "mlp"}
    assert {team.model for team in steps[0].result.state.experts} == {sampled[0]}
    assert [lesson.given["model"] for lesson in lessons] == ["cnn", "mlp"] * 6  # its only expert included
    taught = 0
    for i, (model, step) in enumerate(zip(sampled, steps, strict=True)):
        other = other_than[model]
        (lesson,) = (own for own in lessons[2 * i : 2 * i + 2] if own.given["model"] == other)
        before, student = step.of.seen_under(step.given["state"], other), lesson.result[0]
        assert equal(lesson.given["average"], before)
        share = mixed[i][other]
        for name, tensor in step.result.state.plain[other].items():
            torch.testing.assert_close(tensor, (1 - share) * before[name] + share * student[name])
        assert not equal(student, before)
        taught += share > 0.0
    first = steps[0].of.universal(steps[0].given["state"], other_than[sampled[0]])
    assert equal(first, get_state(build_model(other_than[sampled[0]], SHAPE, 10, result.config.seed)))
    assert taught >= 4


def test_a_cluster_whose_clients_of_one_architecture_were_not_sampled_keeps_their_expert(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, DisUE, "step")
    run(clients=12, model="cnn", client_models="mlp,cnn", fraction_train=0.34, num_server_rounds=6, num_clusters=3)
    kept = 0
    for step in steps[1:]:
        before, after, models = step.given["state"].experts, step.result.state, step.given["round"].models
        sampled = {Team(after.clusters[u.name], models[u.name]) for u in step.given["updates"]}
        assert after.experts.keys() == before.keys() | sampled
        for team in before.keys() - sampled:
            assert after.experts[team] is before[team]
            kept += 1
    assert kept > 5


def test_the_guard_is_counted_over_all_architectures(run) -> None:  # type: ignore[no-untyped-def]
    """With steps so long that they only do harm, it keeps both averages."""
    result = run(clients=6, model="cnn", client_models="mlp,cnn", distill_learning_rate=30.0, num_clusters=2)
    assert [row["guard_kept_average"] for row in result.rows] == [2, 2]


def test_a_generator_teaches_several_architectures(run) -> None:  # type: ignore[no-untyped-def]
    result = run(
        clients=6,
        model="cnn",
        client_models="mlp,cnn",
        proxy="generator",
        generator_steps=10,
        proxy_size=100,
        num_clusters=2,
    )
    assert result.summary["num_teachers"] == 4
    assert result.summary["divergence_student_mlp"] < result.summary["divergence_average_mlp"]
    assert result.summary["divergence_student"] < result.summary["divergence_average"]


def test_everybody_is_described_by_the_runs_initial_model(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    described: dict[int, torch.Tensor] = {}
    original = InlineGrid.answer

    def watch(self, message: Message) -> Message:  # type: ignore[no-untyped-def]
        reply = original(self, message)
        if message.metadata.message_type == "query.describe":
            tensors = reply.content.array_records["signature"].to_torch_state_dict()
            described[message.metadata.dst_node_id] = tensors["description"]
        return reply

    monkeypatch.setattr(InlineGrid, "answer", watch)
    result = run(clients=4, model="cnn", client_models="mlp,cnn", num_server_rounds=1)
    initial = build_model("cnn", SHAPE, 10, result.config.seed)
    federation = build_federation(result.config, 4)
    for i, tensor in enumerate(described[node] for node in sorted(described)):
        torch.testing.assert_close(
            tensor, initial_prototypes(initial, federation.client(i).train, CPU, federation.task)
        )
    assert len(described) == 4


class Rounds:
    """DisUE on the real clients, round by round, while nodes come and go; all run configs are the default."""

    def __init__(self, nodes: list[dict[str, object]]) -> None:
        config = RunConfig()
        self.grid = ChangingGrid(client_app, {}, nodes)
        self.registry = ClientRegistry(seed=0)
        self.registry.gather(self.grid, len(nodes), 1.0)
        self.strategy = make_strategy(config, self.registry, build_federation(config, 6), CPU)
        self.arrays = ArrayRecord(get_state(build_model("cnn", SHAPE, 10, config.seed)))
        self.round = 0

    def run_round(self) -> DisUEState:
        self.round += 1
        messages = list(self.strategy.configure_train(self.round, self.arrays, None, self.grid))  # type: ignore[arg-type]
        self.strategy.aggregate_train(self.round, self.grid.send_and_receive(messages))
        state = self.strategy.reached()
        assert isinstance(state, DisUEState)
        return state


def test_a_newcomer_may_bring_a_new_architecture() -> None:
    nodes = simulated_nodes(6)
    rounds = Rounds(nodes[:5])
    assert rounds.run_round().universals.keys() == {"cnn"}
    rounds.grid.add_node(nodes[5] | {"model": "mlp"})
    state = rounds.run_round()
    assert rounds.strategy.stats.clients_ok == 6
    assert state.universals.keys() == {"cnn", "mlp"}
    (team,) = (team for team in state.experts if team.model == "mlp")
    assert team.cluster == state.clusters["client-5"]
    assert rounds.strategy.stats.metrics["divergence_student_mlp"] > 0.0


def test_a_client_may_come_back_with_another_architecture() -> None:
    nodes = simulated_nodes(6)
    rounds = Rounds([*nodes[:5], nodes[5] | {"model": "mlp"}])
    rounds.run_round()
    (node_id,) = (client.node_id for client in rounds.registry.clients if client.name == "client-5")
    rounds.grid.forget(node_id)
    state = rounds.run_round()
    assert rounds.strategy.stats.clients_ok == 5
    assert any(team.model == "mlp" for team in state.experts)  # it may come back
    rounds.grid.add_node(nodes[5])
    state = rounds.run_round()
    assert rounds.strategy.stats.clients_ok == 6
    assert {team.model for team in state.experts} == {"cnn"}
    assert state.experts_of("mlp") == {}
    (client,) = (client for client in rounds.registry.clients if client.name == "client-5")
    own = rounds.strategy.method.expert(state, client)
    assert own is state.experts[Team(state.clusters["client-5"], "cnn")]
