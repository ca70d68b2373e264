"""The three phases together, on the real clients."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests_support import calls_of, numbered_classes

from client_app.describe import make_signature
from disue.data import build_federation, load_dataset
from disue.models import build_model, get_state, same_model
from disue.signature import Signature
from disue_cli.engines.inline import InlineGrid
from strategies import flower
from strategies.clustering.assignment import Planted
from strategies.clustering.probation import Probation
from strategies.distillation.calibration import Calibrator
from strategies.distillation.distiller import Distiller
from strategies.distillation.early import EarlyStatistics
from strategies.distillation.ensemble import TeacherEnsemble
from strategies.distillation.server import FixedProxy, Server
from strategies.distillation.teachers import TEACHERS, Weighing, vote
from strategies.distillation.universal import UniversalDistillation
from strategies.methods.disue import DisUE
from strategies.methods.disue_settings import DisUESettings
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.teams import Team
from strategies.updates import ClientUpdate, GroupSum


def test_it_finds_the_planted_groups_and_its_experts_win(run) -> None:  # type: ignore[no-untyped-def]
    settings = {
        "clients": 12,
        "num_server_rounds": 5,
        "local_epochs": 2,
        "distill_steps": 60,
        "seed": 11,
    }
    disue, fedavg = run(**settings), run(**settings, method="fedavg")
    assert disue.summary["ari"] == 1.0
    assert disue.summary["num_clusters"] == 3
    assert disue.summary["expert_accuracy"] > fedavg.summary["expert_accuracy"] + 0.1


@pytest.mark.parametrize(("scenario", "groups"), [("rotation", 3), ("rotation", 4), ("label-swap", 3)])
def test_it_finds_groups_of_other_kinds(run, scenario: str, groups: int) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=12, scenario=scenario, num_groups=groups, seed=12)
    assert result.summary["ari"] == 1.0


def test_clients_of_one_kind_are_one_cluster_and_without_evidence_the_universal_expert_is_fedavg_bit_for_bit(
    run,
) -> None:  # type: ignore[no-untyped-def]
    disue = run(scenario="iid", prototype_weight=0.0, universal_momentum=0.0, calibration_epochs=0)
    fedavg = run(scenario="iid", method="fedavg")
    assert disue.summary["num_clusters"] == 1
    first, second = (load_file(r.directory / "universal.safetensors") for r in (disue, fedavg))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_one_cluster_is_taught_what_its_clients_told_and_is_better_than_its_average(run) -> None:  # type: ignore[no-untyped-def]
    settings = {"clients": 8, "scenario": "dirichlet", "alpha": 0.1, "num_clusters": 1, "num_server_rounds": 4}
    for seed in (0, 1):
        result = run(**settings, seed=seed)
        for row in result.rows[1:]:
            assert row["num_clusters"] == row["num_teachers"] == 1
            assert row["universal_accuracy"] > row["average_accuracy"]
            assert row["student_share"] > 0.0


def test_experts_are_the_averages_of_their_members(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, DisUE, "step")
    run(clients=9, num_server_rounds=1, num_clusters=3, calibration_epochs=0)
    (step,) = steps
    state, updates = step.result.state, step.given["updates"]
    assert set(state.experts_of("mlp")) == {0, 1, 2}
    for number, expert in state.experts_of("mlp").items():
        members = [u for u in updates if state.clusters[u.name] == number]
        weights = [u.num_examples for u in members]
        for name, tensor in expert.items():
            expected = np.average([u.state[name].double().numpy() for u in members], axis=0, weights=weights)
            np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)


def test_with_partial_participation_only_sampled_clients_count_and_identities_are_stable(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, DisUE, "step")
    result = run(clients=12, fraction_train=0.5, num_server_rounds=6, seed=13)
    assert [len({update.name for update in step.given["updates"]}) for step in steps] == [6] * 6
    assert result.summary["ari"] == 1.0
    assert [row["churn"] for row in result.rows] == [0.0] * 6
    assert {path.name for path in (result.directory / "experts").iterdir()} == {
        f"expert-{k}.safetensors" for k in range(3)
    }


@pytest.mark.parametrize("initialisation", ["universal", "expert", "blend"])
def test_what_clients_start_from(run, monkeypatch, initialisation: str) -> None:  # type: ignore[no-untyped-def]
    begun = calls_of(monkeypatch, DisUE, "starts")
    run(clients=6, initialisation=initialisation, blend=0.25, num_server_rounds=2, calibration_epochs=0)
    share = {"universal": 0.0, "expert": 1.0, "blend": 0.25}[initialisation]
    (first, second), made = begun, set()
    assert all(start is first.given["state"].universals["mlp"] for start in first.result.values())
    state = second.given["state"]
    assert len(second.result) == 6
    for client, start in second.result.items():
        expert = state.experts[Team(state.clusters[client], "mlp")]
        for name in start:
            torch.testing.assert_close(start[name], (1 - share) * state.universals["mlp"][name] + share * expert[name])
        made.add(id(start))  # it is made, and written, once for each cluster
    assert len(made) == (1 if share == 0.0 else len(state.experts))


@pytest.mark.parametrize(
    "signature", ["last-layer", "update", "prototypes", "initial-prototypes", "subspace", "anchor-gradient"]
)
@pytest.mark.parametrize("clusterer", ["kmeans", "agglomerative", "spectral", "bipartition", "edc"])
def test_every_signature_goes_with_every_clusterer(run, signature: str, clusterer: str) -> None:  # type: ignore[no-untyped-def]
    settings = {"num_server_rounds": 1, "distill_steps": 0, "calibration_epochs": 0}
    result = run(clients=9, signature=signature, clusterer=clusterer, num_clusters=3, seed=14, **settings)
    assert result.summary["num_clusters"] == 3
    assert result.summary["ari"] == 1.0


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
@pytest.mark.parametrize("local_loss", ["cross-entropy", "balanced"])
def test_every_teacher_goes_with_every_local_loss(run, monkeypatch, teacher: str, local_loss: str) -> None:  # type: ignore[no-untyped-def]
    """The experts' own vote is right on most proxy samples, and worse with the prior taken out once more."""
    taught, looked = (
        calls_of(monkeypatch, kind, name)
        for kind, name in ((UniversalDistillation, "teach"), (TeacherEnsemble, "inputs"))
    )
    learnt = calls_of(monkeypatch, Distiller, "distil")
    settings = {"clients": 9, "num_server_rounds": 4, "local_epochs": 2, "seed": 15, "prototype_weight": 0.0}
    settings["proxy_samples"] = 0  # whose classes are not known: half a pixel is much of eight
    result = run(**settings, teacher=teacher, local_loss=local_loss, calibration_epochs=0)
    inputs, targets = looked[-1].result, learnt[-1].given["targets"]
    priors = torch.stack([taught[-1].given["priors"][team] for team in taught[-1].given["ensemble"].voters])
    twice = inputs.expert_logits - (2 if local_loss == "cross-entropy" else 1) * priors.unsqueeze(1)
    worse = vote(twice, TEACHERS[teacher](inputs))
    federation = build_federation(result.config, 9)
    labels = federation.dataset.train.y[federation.proxy_indices]
    right, wrong = (float((own.argmax(dim=1) == labels).double().mean()) for own in (targets, worse))
    assert right > 0.6
    assert right > wrong


@pytest.mark.parametrize("fraction", [0.25, 0.34])
def test_every_cluster_has_an_expert_whoever_was_sampled(run, fraction: float) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=16, num_groups=5, fraction_train=fraction, num_server_rounds=5, seed=16)
    with (result.directory / "clients.csv").open() as file:
        named = {row["cluster"] for row in csv.DictReader(file)} - {""}
    assert {f"expert-{k}.safetensors" for k in named} == {
        path.name for path in (result.directory / "experts").iterdir()
    }
    assert result.summary["num_teachers"] == result.summary["num_clusters"] == len(named)
    assert result.summary["guard_kept_average"] == sum(row["guard_kept_average"] for row in result.rows)


def test_a_split_that_was_not_sampled_starts_with_its_parents_expert(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = [replace(u, signature=Signature(torch.ones(3), torch.ones(3, 64))) for u in make_updates(4)]
    names = [u.name for u in updates]
    server = Server(numbered_classes(3), "mlp", torch.device("cpu"), seed=0)
    distillation = UniversalDistillation(
        server, FixedProxy(torch.zeros(4, 1, 4, 4)), TEACHERS["mean"], Distiller(steps=0)
    )
    method, models = DisUE(Planted(), distillation, DisUESettings(expert_memory=0.0)), dict.fromkeys(names, "mlp")
    state = replace(method.begin(updates[0].start), clusters=dict.fromkeys(names, 0))
    state = method.step(state, updates, Round(1, models)).state
    together = state.experts[Team(0, "mlp")]
    before, state = state.clusters, replace(state, clusters=dict(zip(names, (0, 0, 1, 1), strict=True)))
    state = method.step(state, updates[:2], Round(2, models, before)).state
    assert state.experts[Team(1, "mlp")] is together
    assert not torch.equal(state.experts[Team(0, "mlp")]["head.weight"], together["head.weight"])
    assert state.priors.keys() == {Team(0, "mlp"), Team(1, "mlp")}


def test_with_memory_an_expert_is_a_running_mean_and_clients_start_from_the_last(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """By hand, a tensor at a time; with one cluster there is nothing to remember, so that FedAvg stays FedAvg."""
    steps, begun = (calls_of(monkeypatch, DisUE, name) for name in ("step", "starts"))
    settings = {"expert_memory": 0.75, "initialisation": "expert", "calibration_epochs": 0}
    run(clients=6, num_server_rounds=3, num_clusters=2, **settings)
    means, running = [], np.zeros(0)
    for step in steps:
        state = step.result.state
        own = state.clusters["client-0"]
        members = [u for u in step.given["updates"] if state.clusters[u.name] == own]
        weights = [u.num_examples for u in members]
        means.append(np.average([u.state["head.weight"].double().numpy() for u in members], axis=0, weights=weights))
        running = 0.75 * running + 0.25 * means[-1] if running.size else means[-1]
        np.testing.assert_allclose(state.experts[Team(own, "mlp")]["head.weight"].numpy(), running, atol=1e-6)
    np.testing.assert_allclose(begun[2].result["client-0"]["head.weight"].numpy(), means[1], atol=1e-6)


@pytest.mark.parametrize(
    ("initialisation", "training"),
    [("universal", {("arrays",)}), ("blend", {("arrays",), ("arrays", "universal")})],
)
def test_an_update_never_travels_twice(run, monkeypatch, initialisation: str, training: set[tuple[str, ...]]) -> None:  # type: ignore[no-untyped-def]
    """A training request carries the start, and the universal expert where it is another model; replies no echo."""
    sizes: dict[str, set[tuple[str, ...]]] = {}
    original = InlineGrid.answer

    def watch(self, message):  # type: ignore[no-untyped-def]
        reply = original(self, message)
        kind = message.metadata.message_type
        sizes.setdefault(f"{kind} request", set()).add(tuple(sorted(message.content.array_records)))
        sizes.setdefault(f"{kind} reply", set()).add(tuple(sorted(reply.content.array_records)))
        return reply

    monkeypatch.setattr(InlineGrid, "answer", watch)
    run(num_clusters=3, initialisation=initialisation)
    assert sizes == {
        "query request": {()},
        "query reply": {()},
        "query.describe request": {()},
        "query.describe reply": {("signature",)},
        "query.early request": {()},
        "query.early reply": {("signature",)},
        "train request": training,
        "train reply": {("arrays", "signature")},
        "query.compare request": {("arrays", "average")},
        "query.compare reply": {()},
        "evaluate request": {("arrays", "expert", "prior")},
        "evaluate reply": {()},
    }


def test_label_counts_stay_with_the_clients_if_they_are_not_to_be_told(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """By what is on the wire: which classes there are, and nothing that grows with how often."""
    counts: list[torch.Tensor] = []
    described: list[torch.Tensor] = []
    original = InlineGrid.answer

    def watch(self, message):  # type: ignore[no-untyped-def]
        reply = original(self, message)
        record = reply.content.array_records.get("signature")
        if record is not None:
            tensors = record.to_torch_state_dict()
            if "label-counts" in tensors:
                counts.append(tensors["label-counts"])
            else:
                described.append(tensors["description"])
        return reply

    monkeypatch.setattr(InlineGrid, "answer", watch)
    settings = {"clients": 9, "num_server_rounds": 6, "local_epochs": 2, "seed": 15}
    told = run(**settings)
    assert any(int(row.max()) > 1 for row in counts)
    counts.clear()
    described.clear()
    kept = run(**settings, share_label_counts=False)
    assert len(counts) == 54
    assert {float(value) for row in counts for value in row} == {0.0, 1.0}
    data = build_federation(kept.config, 9).client(0).train
    initial = build_model(kept.config.model, (1, 8, 8), 10, kept.config.seed)
    with torch.no_grad():
        features = initial.body(data.x)
    classes = sorted(set(data.y.tolist()))
    means = torch.stack([features[data.y == c].mean(dim=0) for c in classes])
    means = means - means.mean(dim=0)
    expected = torch.zeros(10, 65)
    expected[classes, :64], expected[classes, 64] = means / means.norm(), len(classes) ** -0.5
    torch.testing.assert_close(described[0], expected / 2**0.5, atol=1e-5, rtol=0.0)
    assert kept.summary["ari"] == told.summary["ari"] == 1.0
    assert kept.summary["universal_accuracy"] > 0.5


def expert_accuracies(result, experts: dict[str, int], shift) -> list[float]:  # type: ignore[no-untyped-def]
    """The accuracy of every client's expert on its own test data, from the files of a run, with shifted logits."""
    federation = build_federation(result.config, len(experts))
    accuracies = []
    for i, (name, cluster) in enumerate(experts.items()):
        assert name == f"client-{i}"
        model = build_model(result.config.model, (1, 8, 8), 10).eval()
        model.load_state_dict(load_file(result.directory / "experts" / f"expert-{cluster}.safetensors"))
        data = federation.client(i)
        with torch.no_grad():
            logits = model(data.test.x) + shift(name, torch.bincount(data.train.y, minlength=10).double())
        accuracies.append(float((logits.argmax(dim=1) == data.test.y).double().mean()))
    return accuracies


def clusters_of(result) -> dict[str, int]:  # type: ignore[no-untyped-def]
    with (result.directory / "clients.csv").open() as file:
        return {row["client"]: int(row["cluster"]) for row in csv.DictReader(file)}


def test_a_client_puts_its_own_label_prior_for_the_clusters(run) -> None:  # type: ignore[no-untyped-def]
    """Against priors counted here: 0.97 p_k + 0.03 / 10 comes out, the client's, with 0.1 more a class, goes in."""
    settings = {"clients": 8, "scenario": "dirichlet", "num_clusters": 2, "num_server_rounds": 3, "seed": 5}
    settings["calibration_epochs"] = 0  # there is no prior in a calibrated head
    settings["initialisation"] = "blend"  # a learnt share depends on how well experts fit as they are used
    result = run(**settings)
    clusters = clusters_of(result)
    federation = build_federation(result.config, 8)
    counts = {name: np.bincount(federation.client(i).train.y, minlength=10) for i, name in enumerate(clusters)}

    def shift(name: str, own: torch.Tensor) -> torch.Tensor:
        pooled = sum(counts[other] for other in clusters if clusters[other] == clusters[name])
        cluster = 0.97 * pooled / pooled.sum() + 0.03 / 10
        return ((own + 0.1) / (own + 0.1).sum()).log() - torch.from_numpy(np.log(cluster))

    assert result.summary["expert_accuracy"] == pytest.approx(np.mean(expert_accuracies(result, clusters, shift)))
    plain = run(**settings, expert_prior="cluster")
    assert plain.summary["expert_accuracy"] == pytest.approx(
        np.mean(expert_accuracies(plain, clusters, lambda name, own: torch.zeros(10)))
    )
    assert plain.summary["universal_accuracy"] == result.summary["universal_accuracy"]
    assert plain.summary["expert_accuracy"] != result.summary["expert_accuracy"]


@pytest.mark.parametrize(
    "settings",
    [{"local_loss": "balanced", "calibration_epochs": 0}, {"calibration_epochs": 1}],
    ids=["balanced loss", "calibrated heads"],
)
def test_where_no_label_prior_is_in_an_expert_the_clients_own_is_added(run, settings) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=8, scenario="dirichlet", num_clusters=2, seed=5, **settings)
    clusters = clusters_of(result)
    added = expert_accuracies(result, clusters, lambda name, own: ((own + 0.1) / (own + 0.1).sum()).log())
    assert result.summary["expert_accuracy"] == pytest.approx(np.mean(added))


def test_a_prior_that_nobody_told_is_estimated_and_replaced_all_the_same(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, DisUE, "step")
    run(clients=8, num_clusters=2, share_label_counts=False, proxy_samples=0, seed=5)
    method, state = steps[-1].of, steps[-1].result.state
    for team, expert in state.experts.items():
        model = build_model("mlp", (1, 8, 8), 10).eval()
        model.load_state_dict(expert)
        with torch.no_grad():
            share = model(method.proxy).softmax(dim=1).mean(dim=0)
        torch.testing.assert_close(state.priors[team], (0.97 * share + 0.003).log(), rtol=1e-4, atol=1e-4)
    name = next(name for name, cluster in state.clusters.items() if cluster == 1)
    client = Client(name, 0, 10, -1, 8, "mlp")
    assert method.prior(state, client) is state.priors[Team(1, "mlp")]


def test_who_was_not_sampled_stays_known_in_the_space_of_the_round(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """It is nearer to what the client would tell now than what it told then, under another universal expert."""
    steps = calls_of(monkeypatch, DisUE, "step")
    result = run(clients=16, num_groups=4, num_clusters=4, fraction_train=0.25, num_server_rounds=5, seed=3)
    federation = build_federation(result.config, 16)
    told: dict[str, Signature] = {}
    off: list[tuple[float, float]] = []
    for step in steps:
        opened, known = step.of.seen_under(step.given["state"], "mlp"), step.result.state.knowledge
        fresh = {update.name: update.signature for update in step.given["updates"]}
        told |= fresh
        assert known.told.keys() == told.keys()
        assert known.spaces["mlp"] is opened
        model = build_model("mlp", (1, 8, 8), 10)
        model.load_state_dict(opened)
        for name, own in known.told.items():
            data = federation.client(int(name.split("-")[1])).train
            now = make_signature(model, data, torch.device("cpu"), federation.task, covariance="all")
            assert torch.equal(own.label_counts, now.label_counts)
            if name in fresh:
                torch.testing.assert_close(own.prototypes, now.prototypes)
            else:
                distances = [float((one.prototypes - now.prototypes).norm()) for one in (own, told[name])]
                off.append((distances[0], distances[1]))
    assert len(off) == 20
    moved, still = (sum(distances) for distances in zip(*off, strict=True))
    assert moved < 0.5 * still


def some_told(feature: float, classes: int = 3, features: int = 64) -> Signature:
    return Signature(torch.ones(classes), torch.full((classes, features), feature))


def in_rounds(steps: int = 0) -> DisUE:
    server = Server(numbered_classes(3), "mlp", torch.device("cpu"), seed=0)
    proxy = FixedProxy(torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    distillation = UniversalDistillation(server, proxy, TEACHERS["mean"], Distiller(steps=steps))
    return DisUE(Planted(), distillation, DisUESettings())


def test_an_expert_is_a_running_mean_too_in_a_round_in_which_no_other_cluster_was_sampled(make_updates) -> None:  # type: ignore[no-untyped-def]
    method = in_rounds()
    updates = [replace(update, signature=some_told(1.0)) for update in make_updates(4)]
    models = {update.name: "mlp" for update in updates}
    clusters = dict(zip(models, (0, 0, 1, 1), strict=True))
    state = replace(method.begin(updates[0].start), clusters=clusters)
    first = method.step(state, updates, Round(1, models)).state
    before = first.experts[Team(0, "mlp")]["head.weight"]
    second = method.step(first, updates[:1], Round(2, models, clusters)).state
    expected = torch.lerp(updates[0].state["head.weight"], before, 0.5)
    torch.testing.assert_close(second.experts[Team(0, "mlp")]["head.weight"], expected)


def test_a_sum_replaces_what_its_cluster_told_before(make_updates) -> None:  # type: ignore[no-untyped-def]
    """Whichever of the clients its name is of; what another cluster told stays."""
    method, state = in_rounds(), make_updates(1)[0].state
    names = [f"client-{i}" for i in range(6)]
    models, clusters = dict.fromkeys(names, "mlp"), dict(zip(names, (0, 0, 0, 1, 1, 1), strict=True))
    begun = replace(method.begin(method.server.initial("mlp")), clusters=clusters)

    def sums(*groups: tuple[str, float]) -> list[GroupSum]:
        return [GroupSum(name, (name,), state, state, 6, some_told(feature)) for name, feature in groups]

    first = method.step(begun, sums(("client-0", 1.0), ("client-3", 2.0)), Round(1, models)).state
    assert first.knowledge.told.keys() == {"client-0", "client-3"}
    second = method.step(first, sums(("client-1", 3.0)), Round(2, models, clusters)).state
    assert second.knowledge.told.keys() == {"client-1", "client-3"}
    assert torch.equal(second.knowledge.told["client-1"].prototypes, some_told(3.0).prototypes)
    assert second.knowledge.spaces["mlp"] is first.universals["mlp"]


@pytest.mark.parametrize(
    ("moves", "changed", "forgotten"),
    [({}, (), False), ({"client-1": 1}, (), True), ({"client-2": 1}, (), False), ({}, ("client-1",), True)],
)
def test_what_several_told_together_is_forgotten_when_one_of_them_moves_or_has_other_data(
    make_updates, moves: dict[str, int], changed: tuple[str, ...], forgotten: bool
) -> None:  # type: ignore[no-untyped-def]
    """Nobody can take its part out. One that was not in the sum takes nothing along."""
    method, state = in_rounds(), make_updates(1)[0].state
    names = [f"client-{i}" for i in range(5)]
    models, clusters = dict.fromkeys(names, "mlp"), dict(zip(names, (0, 0, 0, 1, 1), strict=True))
    begun = replace(method.begin(method.server.initial("mlp")), clusters=clusters)
    of_two, of_one = (
        GroupSum(own[0], own, state, state, 6, some_told(1.0)) for own in (("client-0", "client-1"), ("client-3",))
    )
    first = method.step(begun, [of_two], Round(1, models)).state
    later = replace(first, clusters=clusters | moves)
    second = method.step(later, [of_one], Round(2, models, clusters, changed=frozenset(changed))).state
    assert ("client-0" not in second.knowledge.told) == forgotten


def test_what_a_client_told_of_data_that_it_has_no_more_is_forgotten(make_updates) -> None:  # type: ignore[no-untyped-def]
    """Whether or not it trained on the new ones; if it did, what it tells of them counts."""
    method = in_rounds()
    updates = [replace(update, signature=some_told(1.0)) for update in make_updates(3)]
    models = {update.name: "mlp" for update in updates}
    begun = replace(method.begin(method.server.initial("mlp")), clusters=dict.fromkeys(models, 0))
    first = method.step(begun, updates, Round(1, models)).state
    assert first.knowledge.told.keys() == models.keys()
    again = replace(updates[0], signature=some_told(2.0))
    changed = frozenset({"client-0", "client-1"})
    second = method.step(first, [again], Round(2, models, first.clusters, changed=changed)).state
    assert second.knowledge.told.keys() == {"client-0", "client-2"}
    assert torch.equal(second.knowledge.told["client-0"].prototypes, some_told(2.0).prototypes)


def test_what_a_client_told_of_an_architecture_that_it_has_no_more_is_forgotten(make_updates) -> None:  # type: ignore[no-untyped-def]
    """Also where nobody has that architecture any more, so that there is no space in which it could be."""
    method = in_rounds()
    updates = [replace(update, signature=some_told(1.0)) for update in make_updates(3)]
    cnn = method.server.initial("cnn")
    wide = some_told(1.0, features=cnn["head.weight"].shape[1])
    of_cnn = replace(updates[2], start=cnn, state=cnn, signature=wide)
    models = {"client-0": "mlp", "client-1": "mlp", "client-2": "cnn"}
    clusters = dict.fromkeys(models, 0)
    begun = replace(method.begin(method.server.initial("mlp")), clusters=clusters)
    first = method.step(begun, [*updates[:2], of_cnn], Round(1, models)).state
    assert first.knowledge.models == models
    assert {team.model for team in first.experts} == {"cnn", "mlp"}
    now = dict.fromkeys(models, "mlp")
    second = method.step(first, updates[:1], Round(2, now, clusters)).state
    assert second.knowledge.models == {"client-0": "mlp", "client-1": "mlp"}
    assert {team.model for team in second.experts} == {"mlp"}


def test_a_teacher_without_evidence_beside_its_experts_teaches() -> None:
    """The guard then believes what they vote."""
    halves = Weighing(torch.full((2, 40, 1), 0.5))
    distillation = replace(in_rounds(steps=200).distillation, teacher=lambda inputs: halves)
    method = DisUE(Planted(), distillation, DisUESettings())
    start = method.server.initial("mlp")
    states = [get_state(build_model("mlp", (1, 4, 4), 3, seed)) for seed in (1, 2)]
    updates = [ClientUpdate(f"client-{i}", start, own, 5, some_told(1.0)) for i, own in enumerate(states)]
    begun = replace(method.begin(start), clusters={"client-0": 0, "client-1": 1})
    step = method.step(begun, updates, Round(1, dict.fromkeys(begun.clusters, "mlp")))
    assert step.metrics["num_teachers"] == 2
    assert step.metrics["divergence_student"] < step.metrics["divergence_average"]


def test_the_share_of_the_expert_in_the_start_is_learnt_for_each_cluster(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """From the losses of both models on the training data of the cluster's clients, computed here from their states."""
    evaluated, begun = (calls_of(monkeypatch, DisUE, name) for name in ("after_evaluation", "starts"))
    groups = {"clients": 6, "num_clusters": 2, "scenario": "label-swap", "num_groups": 2, "seed": 4}
    result = run(**groups, initialisation="learned", num_server_rounds=4, local_epochs=3, calibration_epochs=0)
    federation = build_federation(result.config, 6)
    state, learnt = evaluated[0].given["state"], [call.result.state.expert_shares for call in evaluated]
    model = build_model("mlp", (1, 8, 8), 10).eval()
    expected = {}
    for team, expert in state.experts.items():
        sums = [0.0, 0.0]
        for i, cluster in enumerate(state.clusters.values()):
            if cluster != team.cluster:
                continue
            data = federation.client(i).train
            counts = torch.bincount(data.y, minlength=10) + 0.1
            own = (counts / counts.sum()).log()
            for which, (used, shift) in enumerate(((state.universals["mlp"], own), (expert, own - state.priors[team]))):
                model.load_state_dict(used)
                with torch.no_grad():
                    sums[which] += float(torch.nn.functional.cross_entropy(model(data.x) + shift, data.y))
        expected[team] = sums[0] ** 2 / (sums[0] ** 2 + sums[1] ** 2)
    assert learnt[0] == pytest.approx(expected, rel=1e-4)
    team = Team(state.clusters["client-0"], "mlp")
    share = learnt[0][team]
    assert min(learnt[-1].values()) > 0.55  # labels are swapped: in the end the own expert fits better
    for name, tensor in begun[1].result["client-0"].items():
        mixed = (1 - share) * state.universals["mlp"][name] + share * state.experts[team][name]
        torch.testing.assert_close(tensor, mixed)
    assert result.rows[0]["expert_share"] == pytest.approx(np.mean(list(learnt[0].values())))


def test_without_an_evaluation_the_share_is_the_configured_one(run) -> None:  # type: ignore[no-untyped-def]
    settings = {"clients": 6, "num_clusters": 2, "num_server_rounds": 3, "evaluate_every": 9, "seed": 4}
    learned, blend = run(**settings, initialisation="learned"), run(**settings, initialisation="blend")
    for name, tensor in load_file(blend.directory / "universal.safetensors").items():
        assert torch.equal(load_file(learned.directory / "universal.safetensors")[name], tensor)


def test_a_proxy_set_unlike_the_clients_data_teaches_less_and_clients_start_less_apart(
    run, tmp_path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    """Nearly grey images, among which no class can be told: hardly more than the average is left, and its start."""
    grey = np.random.default_rng(0).integers(120, 136, size=(40, 8, 8), dtype=np.uint8)
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    shares: list[float] = []
    original = Distiller.distil

    def watch(self: Distiller, *rest):  # type: ignore[no-untyped-def]
        shares.append(self.student_share)
        return original(self, *rest)

    monkeypatch.setattr(Distiller, "distil", watch)
    settings = {"clients": 6, "num_clusters": 2, "scenario": "label-groups", "num_groups": 2, "num_server_rounds": 3}
    own = run(**settings, student_share=0.5)
    assert not any("proxy_coverage" in row for row in own.rows)
    other = run(**settings, student_share=0.5, proxy=f"path:{tmp_path}")
    coverages = [row["proxy_coverage"] for row in other.rows]
    assert max(coverages) < 0.3
    assert shares == [1.0] * 6  # clients say what is taken of the student
    shares.clear()
    in_private = run(**settings, student_share=0.5, proxy=f"path:{tmp_path}", privacy="dp")
    assert shares == [0.5 * row["proxy_coverage"] for row in in_private.rows]
    for row, before in zip(other.rows, own.rows, strict=True):
        assert 0.0 < row["expert_share"] < row["proxy_coverage"] < before["expert_share"]
    monkeypatch.setattr(flower, "best_shares", lambda *rest: {})  # nobody says which share is best
    unanswered = run(**settings, student_share=0.5, proxy=f"path:{tmp_path}")
    assert [row["student_share"] for row in unanswered.rows] == [0.5 * row["proxy_coverage"] for row in unanswered.rows]


def test_images_of_the_clients_own_kind_are_covered_wholly(run, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    digits = load_dataset("digits").train.x[:300, 0]
    for i, image in enumerate((digits * 255).byte().numpy()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    result = run(clients=6, num_clusters=2, num_groups=2, proxy=f"path:{tmp_path}")
    assert [row["proxy_coverage"] for row in result.rows] == [1.0, 1.0]


SKEWED = {"clients": 12, "scenario": "dirichlet", "alpha": 0.1, "num_server_rounds": 4, "local_epochs": 2}


def test_calibrated_heads_make_better_models_where_labels_are_skewed(run) -> None:  # type: ignore[no-untyped-def]
    """On the mean of two seeds: where the teacher is good, they make little difference to some experts."""
    calibrated, plain = (
        [run(**SKEWED, seed=seed, **settings).summary for seed in (3, 4)]
        for settings in ({}, {"calibration_epochs": 0})
    )
    for key in ("universal_accuracy", "expert_accuracy"):
        assert sum(own[key] for own in calibrated) > sum(own[key] for own in plain)


def test_of_every_expert_and_of_the_universal_expert_the_head_is_calibrated_on_what_its_clients_told(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """In their own features; the universal expert last, on what all told. No label prior is left in them."""
    calls, steps = calls_of(monkeypatch, Calibrator, "calibrated"), calls_of(monkeypatch, DisUE, "step")
    run(clients=8, num_clusters=2, num_groups=2, num_server_rounds=1, head_share=1.0)
    (step,) = steps
    state = step.result.state
    members = {k: sum(own == k for own in state.clusters.values()) for k in (0, 1)}
    assert [[len(told) for told in call.given["told"]] for call in calls] == [[members[0], members[1]], [8]]
    assert [call.result for call in calls] == [[*state.experts.values()], [state.universals["mlp"]]]
    for before, after in [pair for call in calls for pair in zip(call.given["models"], call.result, strict=True)]:
        assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("head."))
        assert not torch.equal(before["head.weight"], after["head.weight"])
    assert all(torch.equal(prior, torch.full((10,), 0.1).log()) for prior in state.priors.values())


@pytest.mark.parametrize(
    "settings",
    [{"share_label_counts": False}, {"privacy": "secure", "prototypes": "cluster"}, {"calibration_epochs": 0}],
    ids=["no label counts", "sums", "switched off"],
)
def test_where_clients_do_not_tell_how_each_class_varies_heads_stay(
    run, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:  # type: ignore[no-untyped-def]
    calls = calls_of(monkeypatch, Calibrator, "calibrated")
    run(clients=6, num_clusters=2, num_groups=2, **settings)
    assert not calls


def test_with_the_prior_of_the_cluster_experts_are_used_as_they_were_trained(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    settings = {"clients": 8, "num_clusters": 2, "num_groups": 2, "num_server_rounds": 1, "expert_prior": "cluster"}
    calls = calls_of(monkeypatch, Calibrator, "calibrated")
    run(**settings)
    assert [[len(told) for told in call.given["told"]] for call in calls] == [[8]]
    calls.clear()
    run(**settings, local_loss="balanced")  # there no prior is in an expert
    assert len(calls) == 2


def test_heads_are_calibrated_as_far_as_the_proxy_set_covers_the_data(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    grey = np.random.default_rng(0).integers(120, 136, size=(40, 8, 8), dtype=np.uint8)
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    calls, steps = calls_of(monkeypatch, Calibrator, "calibrated"), calls_of(monkeypatch, DisUE, "step")
    run(clients=6, num_clusters=2, num_groups=2, num_server_rounds=2, proxy=f"path:{tmp_path}", head_share=0.5)
    first, second = (step.result.state for step in steps)
    assert 0.0 < second.coverage < 0.5
    kept = [*second.experts.values()], [second.universals["mlp"]]
    for call, models, share in zip(calls[2:], kept, (first.coverage, 0.5 * second.coverage), strict=True):
        for before, after, own in zip(call.given["models"], call.result, models, strict=True):
            for name, tensor in own.items():
                torch.testing.assert_close(tensor, torch.lerp(before[name], after[name], share))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_universal_expert_has_the_share_of_its_calibrated_head_that_is_asked_for(
    run, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:  # type: ignore[no-untyped-def]
    """Experts have theirs whole."""
    calls, steps = calls_of(monkeypatch, Calibrator, "calibrated"), calls_of(monkeypatch, DisUE, "step")
    run(clients=6, num_clusters=2, num_groups=2, num_server_rounds=1, head_share=share)
    (step,), (experts, universal) = steps, calls
    assert experts.result == [*step.result.state.experts.values()]
    (before,), (after,) = universal.given["models"], universal.result
    for name, tensor in step.result.state.universals["mlp"].items():
        torch.testing.assert_close(tensor, torch.lerp(before[name], after[name], share))


def test_a_cluster_on_probation_has_no_part_in_the_head_of_the_universal_expert(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    calls = calls_of(monkeypatch, Calibrator, "calibrated")
    monkeypatch.setattr(Probation, "passed", lambda self, before, clusters, sampled: ({0}, {0: 1, 1: 1}))
    run(clients=8, num_clusters=2, num_groups=2, num_server_rounds=1)
    assert [[len(told) for told in call.given["told"]] for call in calls] == [[4, 4], [4]]


def test_experts_are_asked_about_samples_of_their_own_clients_and_hardly_others(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    asked, inputs = calls_of(monkeypatch, Server, "logits"), calls_of(monkeypatch, TeacherEnsemble, "inputs")
    run(clients=8, scenario="rotation", num_groups=2, num_clusters=2, num_server_rounds=2)
    rows = sum(len(call.given["x"]) for call in asked)
    samples = sum(len(call.given["proxy"].seen) for call in inputs)
    assert samples <= rows < 1.5 * samples, "of two experts, each about half"
    found = inputs[-1].result
    some = torch.rand(found.expert_logits.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.3
    expected = torch.where(some.unsqueeze(2), found.expert_logits, 0.0)
    torch.testing.assert_close(found.find_logits(some), expected, atol=1e-4, rtol=1e-4)


def test_a_cluster_that_tells_no_early_features_does_not_teach_and_the_others_still_do(  # type: ignore[no-untyped-def]
    run, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    ensembles = calls_of(monkeypatch, TeacherEnsemble, "inputs")
    asked = calls_of(monkeypatch, EarlyStatistics, "discriminant")
    gates = calls_of(monkeypatch, DisUE, "gate")
    settings = {"clients": 9, "scenario": "rotation", "num_groups": 3, "num_clusters": 3, "num_server_rounds": 1}
    run(**settings)
    clusters = dict(asked[-1].given["clusters"])
    silent = {name for name, cluster in clusters.items() if cluster == clusters["client-0"]}
    told = flower.told_early

    def less(*arguments: Any) -> dict[str, Signature]:
        return {name: own for name, own in told(*arguments).items() if name not in silent}

    monkeypatch.setattr(flower, "told_early", less)
    ensembles.clear()
    run(**settings)
    (ensemble,) = (call.of for call in ensembles)
    assert {team.cluster for team in ensemble.voters} == {*clusters.values()} - {clusters["client-0"]}
    assert ensemble.early is not None
    assert [[space.early > 0 for space in call.result.spaces] for call in gates] == [[True], [False]]
    assert [len(call.result.experts) for call in gates] == [3, 3], "each expert can be chosen"
    assert [line for line in messages if f"of cluster {clusters['client-0']} no early features are known" in line]


@pytest.mark.parametrize(("fraction", "mean"), [(0.5, True), (0.5, False), (1.0, True)])
def test_where_some_clients_are_sampled_the_universal_expert_is_a_running_mean_and_clients_go_on_from_the_latest(
    run, monkeypatch: pytest.MonkeyPatch, fraction: float, mean: bool
) -> None:  # type: ignore[no-untyped-def]
    steps, begun = (calls_of(monkeypatch, DisUE, name) for name in ("step", "starts"))
    settings = {"num_clusters": 1, "num_server_rounds": 12, "calibration_epochs": 0, "distill_steps": 1}
    settings |= {"initialisation": "universal"}
    run(clients=4, fraction_train=fraction, universal_mean=mean, **settings)
    expected = None
    for number, call in enumerate(steps, start=1):
        latest = call.result.state.plain["mlp"]
        share = max(fraction, 10 / (number + 9)) if mean else 1.0
        if expected is None:
            expected = latest
        expected = {name: (1 - share) * expected[name] + share * latest[name] for name in latest}
        found = call.result.state.universals["mlp"]
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in latest)
        if number < len(steps):
            assert all(same_model(start, latest) for start in begun[number].result.values())
    assert same_model(found, latest) == (fraction == 1.0 or not mean)
