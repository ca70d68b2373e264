"""The three phases together, on the real clients."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from disue.cli.inline import InlineGrid
from disue.data import build_federation
from disue.models import build_model
from disue.signature import Signature
from strategies.aggregators import weighted_average
from strategies.disue import DisUE
from strategies.teachers import TEACHERS
from strategies.updates import ClientUpdate


def test_it_finds_the_planted_groups_and_its_experts_win(run) -> None:  # type: ignore[no-untyped-def]
    settings = {
        "clients": 12,
        "model": "cnn",
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


def test_clients_of_one_kind_are_one_cluster_and_the_universal_expert_is_fedavg_bit_for_bit(run) -> None:  # type: ignore[no-untyped-def]
    disue, fedavg = run(scenario="iid"), run(scenario="iid", method="fedavg")
    assert disue.summary["num_clusters"] == 1
    first, second = (load_file(r.directory / "universal.safetensors") for r in (disue, fedavg))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_experts_are_the_averages_of_their_members(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    seen: list[tuple[dict[str, int], list[ClientUpdate], dict[int, dict[str, torch.Tensor]]]] = []
    original = DisUE._update_experts

    def watch(self: DisUE, updates: list[ClientUpdate], before: dict[str, int]) -> None:
        original(self, updates, before)
        seen.append((dict(self.clusters), updates, dict(self.experts)))

    monkeypatch.setattr(DisUE, "_update_experts", watch)
    run(clients=9, num_server_rounds=1, num_clusters=3)
    ((clusters, updates, experts),) = seen
    assert set(experts) == {0, 1, 2}
    for number, expert in experts.items():
        members = [u for u in updates if clusters[u.name] == number]
        weights = [u.num_examples for u in members]
        for name, tensor in expert.items():
            expected = np.average([u.state[name].double().numpy() for u in members], axis=0, weights=weights)
            np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-6)


def test_with_partial_participation_only_sampled_clients_count_and_identities_are_stable(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    averaged: list[set[str]] = []
    original = DisUE._update_experts

    def watch(self: DisUE, updates: list[ClientUpdate], before: dict[str, int]) -> None:
        averaged.append({update.name for update in updates})
        original(self, updates, before)

    monkeypatch.setattr(DisUE, "_update_experts", watch)
    result = run(clients=12, fraction_train=0.5, num_server_rounds=6, seed=13)
    assert all(len(names) == 6 for names in averaged)
    assert result.summary["ari"] == 1.0
    assert [row["churn"] for row in result.rows] == [0.0] * 6
    assert {path.name for path in (result.directory / "experts").iterdir()} == {
        f"expert-{k}.safetensors" for k in range(3)
    }


@pytest.mark.parametrize("initialisation", ["universal", "expert", "blend"])
def test_what_clients_start_from(run, monkeypatch, initialisation: str) -> None:  # type: ignore[no-untyped-def]
    starts: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor] | None]] = []
    original = DisUE.start_for

    def watch(self: DisUE, name: str) -> dict[str, torch.Tensor]:
        start = original(self, name)
        starts.append((start, self.universal, self.expert_for(name)))
        return start

    monkeypatch.setattr(DisUE, "start_for", watch)
    run(clients=6, initialisation=initialisation, blend=0.25, num_server_rounds=2)
    share = {"universal": 0.0, "expert": 1.0, "blend": 0.25}[initialisation]
    assert all(start is universal for start, universal, expert in starts if expert is None)
    second_round = [entry for entry in starts if entry[2] is not None]
    assert len(second_round) == 6
    for start, universal, expert in second_round:
        assert expert is not None
        for name in start:
            torch.testing.assert_close(start[name], (1 - share) * universal[name] + share * expert[name])


@pytest.mark.parametrize("signature", ["last-layer", "update", "prototypes", "initial-prototypes", "subspace"])
@pytest.mark.parametrize("clusterer", ["kmeans", "agglomerative", "spectral", "bipartition", "edc"])
def test_every_signature_goes_with_every_clusterer(run, signature: str, clusterer: str) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=9, signature=signature, clusterer=clusterer, num_clusters=3, seed=14)
    assert result.summary["num_clusters"] == 3
    assert result.summary["ari"] == 1.0


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
@pytest.mark.parametrize("local_loss", ["cross-entropy", "balanced"])
def test_every_teacher_goes_with_every_local_loss(run, teacher: str, local_loss: str) -> None:  # type: ignore[no-untyped-def]
    """Above chance by far after six rounds, prior correction on; a prior taken out twice gives 0.02."""
    result = run(clients=9, teacher=teacher, local_loss=local_loss, num_server_rounds=6, local_epochs=2, seed=15)
    assert result.summary["universal_accuracy"] > 0.5


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
    strategy = DisUE.__new__(DisUE)
    strategy.model = "mlp"
    updates = [replace(u, signature=Signature(torch.ones(3), torch.ones(3, 64))) for u in make_updates(4)]
    names = [u.name for u in updates]
    strategy.roster = SimpleNamespace(models=dict.fromkeys(names, "mlp"))
    strategy.team_experts, strategy.knowledge = {}, {}
    strategy.clusters = dict.fromkeys(names, 0)
    strategy.averages = {"mlp": weighted_average(updates)}
    strategy._update_experts(updates, before={})
    together = strategy.experts[0]
    strategy.clusters = dict(zip(names, (0, 0, 1, 1), strict=True))
    strategy.averages = {"mlp": weighted_average(updates[:2])}
    strategy._update_experts(updates[:2], before=dict.fromkeys(names, 0))
    assert strategy.experts[1] is together
    assert not torch.equal(strategy.experts[0]["head.weight"], together["head.weight"])


@pytest.mark.parametrize(
    ("initialisation", "training"),
    [("universal", {("arrays",)}), ("blend", {("arrays",), ("arrays", "universal")})],
)
def test_an_update_never_travels_twice(run, monkeypatch, initialisation: str, training: set[tuple[str, ...]]) -> None:  # type: ignore[no-untyped-def]
    """A training request carries the start, and the universal expert where it is another model; replies no echo."""
    sizes: dict[str, set[tuple[str, ...]]] = {}
    original = InlineGrid._answer

    def watch(self, message):  # type: ignore[no-untyped-def]
        reply = original(self, message)
        kind = message.metadata.message_type
        sizes.setdefault(f"{kind} request", set()).add(tuple(sorted(message.content.array_records)))
        sizes.setdefault(f"{kind} reply", set()).add(tuple(sorted(reply.content.array_records)))
        return reply

    monkeypatch.setattr(InlineGrid, "_answer", watch)
    run(num_clusters=3, initialisation=initialisation)
    assert sizes == {
        "query request": {()},
        "query reply": {()},
        "query.describe request": {()},
        "query.describe reply": {("signature",)},
        "train request": training,
        "train reply": {("arrays", "signature")},
        "evaluate request": {("arrays", "expert")},
        "evaluate reply": {()},
    }


def test_label_counts_stay_with_the_clients_if_they_are_not_to_be_told(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """By what is on the wire: which classes there are, and nothing that grows with how often."""
    counts: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    original = InlineGrid._answer

    def watch(self, message):  # type: ignore[no-untyped-def]
        reply = original(self, message)
        record = reply.content.array_records.get("signature")
        if record is not None:
            tensors = record.to_torch_state_dict()
            if "label-counts" in tensors:
                counts.append(tensors["label-counts"])
            else:
                norms.append(tensors["description"].norm(dim=1))
        return reply

    monkeypatch.setattr(InlineGrid, "_answer", watch)
    settings = {"clients": 9, "num_server_rounds": 6, "local_epochs": 2, "seed": 15}
    told = run(**settings)
    assert any(int(row.max()) > 1 for row in counts)
    counts.clear()
    norms.clear()
    kept = run(**settings, share_label_counts=False)
    assert len(counts) == 54
    assert {float(value) for row in counts for value in row} == {0.0, 1.0}
    data = build_federation(kept.config, 9).client(0).train
    initial = build_model(kept.config.model, (1, 8, 8), 10, kept.config.seed)
    with torch.no_grad():
        features = initial.body(data.x)
    means = torch.stack(
        [features[data.y == c].mean(dim=0).norm() if (data.y == c).any() else torch.tensor(0.0) for c in range(10)]
    )
    torch.testing.assert_close(norms[0], means / means.norm(), atol=1e-5, rtol=0.0)
    assert kept.summary["ari"] == told.summary["ari"] == 1.0
    assert kept.summary["universal_accuracy"] > 0.5
