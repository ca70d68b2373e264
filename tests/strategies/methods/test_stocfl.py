"""StoCFL against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_loops import CLIENTS, CONFIG, EPOCHS, RATE, ROUNDS, carried_out, gradients, initial, trained, weighted
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from disue.data import build_federation
from disue.errors import ConfigError
from disue.models import State, flatten
from disue.naming import client_name
from strategies.methods.stocfl import StoCFL, merged
from strategies.rounds.round import Round
from strategies.teams import Team

WEIGHT = 0.7


def by_a_loop() -> tuple[State, dict[int, State], list[int]]:
    """Return the global model, that of each group, and the clients' groups."""
    groups = [build_federation(CONFIG, CLIENTS).client(i).group for i in range(CLIENTS)]
    omega, thetas = initial(), dict.fromkeys(groups, initial())
    for _ in range(ROUNDS):
        ends = []
        for i in range(CLIENTS):
            theta = thetas[groups[i]]
            for _ in range(EPOCHS):
                gradient = gradients(theta, i)
                theta = {n: t - RATE * (gradient[n] + WEIGHT * (t - omega[n])) for n, t in theta.items()}
            ends.append(theta)
        members = {group: [i for i in range(CLIENTS) if groups[i] == group] for group in thetas}
        thetas = {group: weighted([ends[i] for i in own], own) for group, own in members.items()}
        omega = weighted([trained(omega, i) for i in range(CLIENTS)])
    return omega, thetas, groups


@pytest.mark.parametrize("per_node", [1, 2])
def test_it_is_the_papers_also_after_a_break(per_node: int) -> None:
    state = carried_out(StoCFL("mlp", 0.5, WEIGHT), (1, ROUNDS), per_node).reached()
    omega, thetas, groups = by_a_loop()
    close(state.universals["mlp"], omega)
    found = {name_of(i): group for i, group in enumerate(groups)}
    labels = {found[name]: label for name, label in state.clusters.items()}
    assert state.clusters == {name: labels[group] for name, group in found.items()}
    assert len(state.experts) == len(thetas) == 2
    for group, theta in thetas.items():
        close(state.experts[Team(labels[group], "mlp")], theta)
    assert not torch.allclose(omega["head.weight"], thetas[0]["head.weight"], atol=1e-3)


def name_of(client: int) -> str:
    return client_name({"partition-id": client})


def close(found: State, expected: State) -> None:
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_its_global_model_is_fedavgs_bit_for_bit_and_its_clusters_are_the_planted_groups(run) -> None:  # type: ignore[no-untyped-def]
    stocfl, fedavg = run(method="stocfl", clients=9), run(method="fedavg", clients=9)
    models = [load_file(own.directory / "universal.safetensors") for own in (stocfl, fedavg)]
    assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())
    assert [row["ari"] for row in stocfl.rows] == [1.0, 1.0]
    assert stocfl.summary["expert_accuracy"] > fedavg.summary["expert_accuracy"]
    assert stocfl.summary["client_steps"] == 2 * fedavg.summary["client_steps"]


def test_without_its_term_the_clusters_train_apart(run) -> None:  # type: ignore[no-untyped-def]
    """As the planted groups do where the order of the examples does not matter."""
    settings = {"clients": 9, "batch_size": 10**6, "learning_rate": 0.1}
    alone, oracle = run(method="stocfl", stocfl_lambda=0.0, **settings), run(method="oracle", **settings)
    assert alone.summary["expert_accuracy"] == pytest.approx(oracle.summary["expert_accuracy"], abs=1e-6)
    held = run(method="stocfl", stocfl_lambda=5.0, **settings)
    assert held.summary["expert_accuracy"] != alone.summary["expert_accuracy"]


def test_clients_are_met_one_after_the_other_and_join_whom_they_are_like(run) -> None:  # type: ignore[no-untyped-def]
    result = run(method="stocfl", clients=12, fraction_train=0.25, num_server_rounds=8)
    assert all(row["ari"] == 1.0 for row in result.rows if row["num_clusters"] > 1)
    assert result.summary["num_clusters"] == 3


def test_a_client_whose_data_changed_is_met_anew(make_updates) -> None:  # type: ignore[no-untyped-def]
    """It joins whom it is like now, as soon as it takes part; until then it is in no cluster."""
    method, updates = StoCFL("mlp"), make_updates(4)
    kinds = {"client-0": at(0), "client-1": at(5), "client-2": at(90), "client-3": at(95)}
    models = dict.fromkeys(kinds, "mlp")
    first = method.assign(method.begin(initial()), updates, Round(1, models, descriptions=kinds)).state
    east, north = (first.clusters[name] for name in ("client-0", "client-2"))
    assert first.clusters == {"client-0": east, "client-1": east, "client-2": north, "client-3": north}
    moved = kinds | {"client-1": at(92)}
    stays = method.assign(first, updates, Round(2, models, descriptions=moved)).state
    assert stays.clusters == first.clusters
    changed = frozenset({"client-1"})
    away = method.assign(first, updates[:1], Round(2, models, descriptions=moved, changed=changed)).state
    assert away.clusters == {"client-0": east, "client-2": north, "client-3": north}
    for before, round in (
        (away, Round(3, models, descriptions=moved)),
        (first, Round(2, models, descriptions=moved, changed=changed)),
    ):
        assert method.assign(before, updates, round).state.clusters == first.clusters | {"client-1": north}


def test_with_a_threshold_that_nothing_meets_every_client_is_alone(run) -> None:  # type: ignore[no-untyped-def]
    assert run(method="stocfl", stocfl_tau=1.0).summary["num_clusters"] == 6
    assert run(method="stocfl", stocfl_tau=-1.0).summary["num_clusters"] == 1


def test_the_server_sees_single_updates_of_one_architecture(run) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="client-models: got 'lenet' beside model 'mlp'; method 'stocfl' needs one"):
        run(method="stocfl", client_models="mlp,lenet")


# --- which clusters are merged ----------------------------------------------------------------------


def at(degrees: float, length: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    return length * torch.tensor([[math.cos(angle), math.sin(angle)]])


def test_the_most_alike_are_merged_first_and_the_larger_gives_its_label() -> None:
    gradients = {"a": at(0), "b": at(40), "c": at(50), "d": at(52), "e": at(200)}
    tau = math.cos(math.radians(45))
    # c and d; then b; their mean is 45 degrees and a little from a
    clusters = merged({name: label for label, name in enumerate("abcde")}, gradients, tau)
    assert clusters == {"a": 0, "b": 2, "c": 2, "d": 2, "e": 4}
    assert merged(clusters, gradients, tau) == clusters
    assert set(merged(clusters, gradients, math.cos(math.radians(50))).values()) == {2, 4}


def test_nobody_counts_for_more_by_the_length_of_its_gradient() -> None:
    tau = math.cos(math.radians(35))
    gradients = {"a": at(0), "b": at(20), "c": at(50)}
    before = merged({"a": 0, "b": 0, "c": 1}, gradients, tau)
    assert merged({"a": 0, "b": 0, "c": 1}, gradients | {"b": at(20, 1e6)}, tau) == before == {"a": 0, "b": 0, "c": 1}


@given(st.lists(st.floats(0.0, 360.0), min_size=1, max_size=8), st.floats(-0.9, 0.99))
def test_it_is_a_loop_over_the_mean_of_each_cluster(degrees: list[float], tau: float) -> None:
    gradients = {f"client-{i}": at(value).double() for i, value in enumerate(degrees)}
    groups = [[name] for name in gradients]

    def cosine(first: list[str], second: list[str]) -> float:
        means = [torch.stack([gradients[name][0] for name in own]).sum(dim=0) for own in (first, second)]
        return float(F.cosine_similarity(*means, dim=0, eps=1e-300))

    def nearest() -> tuple[float, int, int]:
        pairs = [(cosine(a, b), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups) if i < j]
        return max(pairs, default=(-2.0, 0, 0), key=lambda pair: pair[0])

    margin = 1.0
    while (best := nearest())[0] >= tau:
        margin = min(margin, best[0] - tau)
        groups[best[1]] = groups[best[1]] + groups.pop(best[2])
    found = merged({name: label for label, name in enumerate(gradients)}, gradients, tau)
    by_label: dict[int, set[str]] = {}
    for name, label in found.items():
        by_label.setdefault(label, set()).add(name)
    kept = list(by_label.values())
    for i, a in enumerate(kept):
        for b in kept[:i]:
            assert cosine(sorted(a), sorted(b)) < tau + 1e-9
    if len(set(degrees)) == len(degrees):
        assert len(kept) == len(groups) or margin < 1e-6 or abs(best[0] - tau) < 1e-6


def test_of_the_gradient_of_a_client_the_server_needs_no_more_than_its_direction() -> None:
    gradient = flatten(list(gradients(initial(), 0).values())).unsqueeze(0)
    assert merged({"a": 0, "b": 1}, {"a": gradient, "b": 3.0 * gradient}, 0.999) == {"a": 0, "b": 0}
