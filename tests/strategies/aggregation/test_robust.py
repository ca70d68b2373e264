"""Robust averages against closed forms and searches, and what a poisoned client can do to a run."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests_support import calls_of

from strategies.aggregation.average import weighted_average
from strategies.aggregation.limits import Lengths
from strategies.aggregation.robust import AGGREGATORS, Aggregator, MaliciousShareSettings, Rule, wrong_models
from strategies.methods.disue import DisUE
from strategies.rounds.collecting import PlainCollector, Received
from strategies.updates import ClientUpdate

ROBUST = sorted(set(AGGREGATORS) - {"mean"})


def updates_of(points: list[list[float]], examples: list[int] | None = None) -> list[ClientUpdate]:
    start = {"a": torch.zeros(len(points[0]) - 1), "b": torch.zeros(1, 1)}
    counts = examples or [1] * len(points)
    return [
        ClientUpdate(f"client-{i}", start, {"a": torch.tensor(p[:-1]), "b": torch.tensor([p[-1:]])}, count)
        for i, (p, count) in enumerate(zip(points, counts, strict=True))
    ]


def configured(rule: str, share: float = 0.2) -> Rule:
    return AGGREGATORS.configured(rule, MaliciousShareSettings(malicious_share=share))


def aggregated(
    rule: str, points: list[list[float]], share: float = 0.2, examples: list[int] | None = None
) -> list[float]:
    state = Aggregator(configured(rule, share))(updates_of(points, examples))
    assert state["b"].shape == (1, 1)
    assert state["a"].dtype == torch.float32
    return [*state["a"].tolist(), *state["b"].flatten().tolist()]


POINTS = st.lists(st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3), min_size=1, max_size=9)


@given(POINTS)
def test_the_median_is_numpys(points: list[list[float]]) -> None:
    np.testing.assert_allclose(aggregated("median", points), np.median(np.array(points), axis=0), rtol=1e-6)


@given(POINTS, st.sampled_from([0.0, 0.1, 0.2, 0.4]))
def test_the_trimmed_mean_leaves_out_the_extremes(points: list[list[float]], share: float) -> None:
    cut = wrong_models(len(points), share)
    kept = [sorted(column)[cut : len(points) - cut] for column in zip(*points, strict=True)]
    expected = [sum(column) / len(column) for column in kept]
    np.testing.assert_allclose(aggregated("trimmed-mean", points, share), expected, rtol=1e-5, atol=1e-5)


@given(POINTS, st.sampled_from([0.0, 0.2, 0.4]))
def test_krum_by_hand(points: list[list[float]], share: float) -> None:
    """A loop over all pairs; the candidates are told apart by score, so that ties may go either way."""
    count = len(points)
    wrong = wrong_models(count, share)
    if count - wrong - 2 < 1:
        for rule in ("krum", "multi-krum"):
            assert aggregated(rule, points, share) == aggregated("median", points, share)
        return
    nearest = count - wrong - 2
    scores = [
        sum(
            sorted(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points[:i] + points[i + 1 :])[:nearest]
        )
        for i, p in enumerate(points)
    ]
    chosen = aggregated("krum", points, share)
    assert min(s for p, s in zip(points, scores, strict=True) if np.allclose(p, chosen)) == pytest.approx(min(scores))
    if len(set(scores)) == count:
        best = sorted(range(count), key=scores.__getitem__)[: count - wrong]
        expected = np.mean([points[i] for i in best], axis=0)
        np.testing.assert_allclose(aggregated("multi-krum", points, share), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_the_geometric_median_has_the_smallest_sum_of_distances(count: int) -> None:
    """Against a general minimiser."""
    points = np.random.default_rng(count).normal(size=(count, 3))

    def total(centre: np.ndarray) -> float:
        return float(np.linalg.norm(points - centre, axis=1).sum())

    found = np.array(aggregated("geometric-median", points.tolist()))
    best = minimize(
        total, points.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9999}
    )
    assert total(found) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x, atol=1e-3)


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_of_one_model_all_rules_give_that_model(rule: str) -> None:
    assert aggregated(rule, [[1.0, -2.0, 0.25]]) == [1.0, -2.0, 0.25]


@pytest.mark.parametrize("rule", ROBUST)
def test_of_two_models_all_robust_rules_give_the_middle(rule: str) -> None:
    assert aggregated(rule, [[0.0, 0.0, 0.0], [2.0, 4.0, -2.0]], examples=[1, 99]) == [1.0, 2.0, -1.0]


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("count", [3, 4, 5, 10])
def test_one_wrong_model_moves_no_robust_rule_far(rule: str, count: int) -> None:
    """However far it is, and however many examples it claims; the weighted mean goes with it."""
    honest = np.random.default_rng(count).normal(size=(count - 1, 3)).tolist()
    points, examples = [*honest, [1e6, -1e6, 1e6]], [10] * (count - 1) + [10**6]
    assert np.linalg.norm(aggregated(rule, points, examples=examples)) < 10
    assert np.linalg.norm(aggregated("mean", points, examples=examples)) > 1e5


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_the_order_of_clients_makes_no_difference(rule: str) -> None:
    points = np.random.default_rng(1).normal(size=(5, 3)).tolist()  # of four, the nearest two would be a tie
    found = [aggregated(rule, list(order)) for order in itertools.permutations(points)]
    np.testing.assert_allclose(found, [found[0]] * len(found), atol=1e-6)


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_nothing_to_average_is_an_error(rule: str) -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        Aggregator(configured(rule))([])


def test_a_client_that_sends_the_opposite_many_times_over_does_no_harm(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Its update is turned round and thirty times as long, in every round; the mean is ruined by it."""
    common = {"clients": 8, "scenario": "iid", "method": "fedavg", "num_server_rounds": 5, "seed": 3}
    clean = run(**common).summary["universal_accuracy"]
    read = PlainCollector.read

    def poisoned(self, message, sent):  # type: ignore[no-untyped-def]
        u = read(self, message, sent).update
        factor = -30 if sent.name == "client-3" else 1
        turned = replace(u, state={k: u.start[k] + factor * (v - u.start[k]) for k, v in u.state.items()})
        return Received(turned, Lengths().of(turned))

    monkeypatch.setattr(PlainCollector, "read", poisoned)
    assert run(**common).summary["universal_accuracy"] < clean - 0.2
    for protection in (*({"aggregator": rule} for rule in ROBUST), {"clip_norm": 1.0}):
        assert run(**common, **protection).summary["universal_accuracy"] > clean - 0.1, protection


@pytest.mark.parametrize("rule", ROBUST)
def test_each_cluster_has_a_robust_expert(run, monkeypatch, rule: str) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, DisUE, "step")
    run(clients=9, num_clusters=3, num_server_rounds=1, aggregator=rule, malicious_share=0.3, calibration_epochs=0)
    (step,) = steps
    updates, state = step.given["updates"], step.result.state
    for team, expert in state.experts.items():
        members = [update for update in updates if state.clusters[update.name] == team.cluster]
        expected = Aggregator(configured(rule, 0.3))(members)
        assert all(torch.equal(expert[name], tensor) for name, tensor in expected.items())
    average = step.result.averages["mlp"]
    assert not all(torch.equal(average[k], v) for k, v in weighted_average(updates).items())


def test_the_model_of_all_is_the_mean_of_all_or_of_the_groups_each_as_heavy_as_it_has_clients() -> None:
    updates = updates_of([[0.0, 0.0], [2.0, 2.0], [100.0, 100.0], [4.0, 8.0]], examples=[1, 2, 1, 4])
    groups = {0: updates[:3], 1: updates[3:]}
    for rule, expected in (("mean", weighted_average(updates)["a"].item()), ("median", (3 * 2.0 + 4.0) / 4)):
        aggregator = Aggregator(configured(rule))
        models, model = aggregator.of_groups(updates, groups)
        assert model["a"].item() == pytest.approx(expected)
        for key, group in groups.items():
            assert all(torch.equal(models[key][name], tensor) for name, tensor in aggregator(group).items())
        models, model = aggregator.of_groups(groups[1], {1: groups[1]})
        assert model is models[1]
