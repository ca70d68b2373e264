"""What is too long, or stands for too much, against loops."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from hypothesis import given
from hypothesis import strategies as st
from tests_support import ChangingGrid, answering_app, calls_of, honest, shifted

from disue.covariance import from_triangle, triangle
from disue.data import build_federation
from disue.discriminant import SHRINKAGE
from disue.models import State
from disue.signature import Signature
from disue.wire import TrainReply, TrainRequest
from server_app.build import make_strategy
from server_app.config import RunConfig
from strategies.aggregation.caps import Caps, capped
from strategies.aggregation.limits import Lengths, Limits
from strategies.distillation.discriminant import discriminant_of
from strategies.flower import FederatedStrategy
from strategies.methods.base import MethodState, Step
from strategies.methods.clustered import ClusteredMethod
from strategies.methods.disue import DisUE
from strategies.methods.fedavg import FedAvg
from strategies.rounds.collecting import PlainCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.round import Round
from strategies.rounds.stats import Participation
from strategies.updates import ClientUpdate, SecondModel


def measured(updates: list[ClientUpdate]) -> tuple[list[ClientUpdate], dict[str, float]]:
    lengths = Lengths()
    return updates, {update.name: lengths.of(update) for update in updates}


def test_a_length_is_to_the_updates_own_start(make_updates) -> None:  # type: ignore[no-untyped-def]
    """Also where the one before had another, of the same values even."""
    updates = make_updates(4)
    updates[1] = replace(updates[1], start=shifted(updates[1].start, 1.0))
    updates[3] = replace(updates[3], start=dict(updates[3].start))
    for update, found in zip(updates, measured(updates)[1].values(), strict=True):
        squares = [(update.state[key].double() - start.double()).square().sum() for key, start in update.start.items()]
        assert found == pytest.approx(float(sum(squares)) ** 0.5)


def test_the_length_of_two_models_is_that_of_both_and_both_are_shortened(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(5)
    second = SecondModel(shifted(updates[0].start, 1.0), shifted(updates[0].start, 31.0))
    updates[0] = replace(updates[0], second=second)
    _, lengths = measured(updates)
    alone = measured([replace(updates[0], second=None)])[1][updates[0].name]
    count = sum(tensor.numel() for tensor in second.start.values())
    assert lengths[updates[0].name] == pytest.approx(math.hypot(alone, 30.0 * math.sqrt(count)))
    assert Limits(max_norm=5.0).implausible(updates, lengths).keys() == {updates[0].name}
    kept: list[State] = []
    clipped = Limits(clip_norm=1.2).clipped(updates, lengths, lambda state: kept.append(state) or state)[0]
    assert [id(state) for state in kept] == [id(clipped.second.state), id(clipped.state)]
    assert measured([clipped])[1][updates[0].name] == pytest.approx(1.2 * np.median(list(lengths.values())), rel=1e-4)
    assert clipped.second.start is second.start


def test_clipping_shortens_what_is_too_long_and_nothing_else(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(5)
    long = replace(
        updates[0], state={k: updates[0].start[k] + 50 * (v - updates[0].start[k]) for k, v in updates[0].state.items()}
    )
    updates = [long, *updates[1:]]

    def by_parameter(update: ClientUpdate) -> float:
        return float(np.sqrt(sum(float(((update.state[k] - v) ** 2).sum()) for k, v in update.start.items())))

    result = Limits(clip_norm=2.0).clipped(*measured(updates))
    assert by_parameter(result[0]) == pytest.approx(
        2.0 * np.median([by_parameter(update) for update in updates]), rel=1e-5
    )
    assert all(after is before for after, before in zip(result[1:], updates[1:], strict=True))
    for name, start in long.start.items():  # in the same direction
        ratio = by_parameter(result[0]) / by_parameter(long)
        torch.testing.assert_close(
            result[0].state[name] - start, ratio * (long.state[name] - start), rtol=1e-3, atol=1e-5
        )


def test_what_lies_too_far_beyond_the_median_is_named_and_nothing_else(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(5)
    far = replace(updates[2], state={k: v + 10 * (v - updates[2].start[k]) for k, v in updates[2].state.items()})
    updates = [*updates[:2], far, *updates[3:]]
    found = Limits(max_norm=5.0).implausible(*measured(updates))
    assert found.keys() == {far.name}
    assert "5 times" in found[far.name]
    assert not Limits(max_norm=20.0).implausible(*measured(updates))
    assert not Limits().implausible(*measured(updates))


def test_where_nobody_learned_anything_the_model_is_the_measure(make_updates) -> None:  # type: ignore[no-untyped-def]
    updates = make_updates(4)
    still = [replace(update, state=update.start) for update in updates[:3]]
    short = replace(updates[3], state=shifted(updates[3].start, 1e-4))
    assert not Limits(max_norm=2.0).implausible(*measured([*still, short]))
    assert Limits(max_norm=2.0).implausible(*measured([*still, updates[3]])).keys() == {updates[3].name}
    nothing = {"w": torch.zeros(2)}
    assert not Limits(max_norm=2.0).implausible(*measured([ClientUpdate("a", nothing, nothing, 1)]))
    assert Limits(max_norm=2.0, clip_norm=1.0).clipped(*measured([])) == []


@pytest.mark.parametrize(
    ("amount", "examples", "reason"),
    [
        (100.0, 4, "its norm is 265; 10 times 2.65 is allowed"),
        (1.0, 11, "num-examples is 11; max-examples allows 10"),
    ],
)
def test_an_implausible_client_is_named_counted_and_touches_no_model(
    amount: float, examples: int, reason: str, messages: list[str]
) -> None:
    def train(name: str, request: TrainRequest, message: Message) -> Message:
        if name != "client-2":
            return honest(name, request, message)
        assert request.start is not None
        return TrainReply(shifted(request.start, amount), examples, 9.0, 7).to_message(message)

    grid = ChangingGrid(answering_app(train), {}, [{"name": f"client-{i}"} for i in range(4)])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, 4, 1.0)
    collector = PlainCollector(Limits(max_examples=10, max_norm=10.0))
    strategy = FederatedStrategy(registry, Participation(num_rounds=1), FedAvg("mlp"), collector)
    strategy.start(grid, ArrayRecord({"w": torch.zeros(3), "b": torch.zeros(2, 2)}), num_rounds=1)
    assert strategy.reached().universals["mlp"]["w"].tolist() == [1.0, 1.0, 1.0]
    stats = strategy.stats
    assert (stats.clients_ok, stats.clients_failed, stats.clients_rejected) == (3, 0, 1)
    assert (stats.train_loss, stats.client_steps) == (0.5, 3)
    assert [said for said in messages if said.startswith("client-2: update rejected: ") and reason in said]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, 100.0, 1e12]) | st.floats(0.0, 1e12), min_size=1, max_size=9),
    st.floats(1.0, 20.0),
    st.sampled_from([0.0, 3.0]),
)
def test_no_number_counts_for_more_than_the_median_of_the_others_allows(
    values: list[float], times: float, usual: float
) -> None:
    told = {str(i): value for i, value in enumerate(values)}
    counted = capped(told, times, usual)
    assert counted.keys() == told.keys()
    for name, value in told.items():
        others = [other for key, other in told.items() if key != name]
        most = times * max(float(np.median(others)), usual) if others else math.inf
        assert counted[name] == pytest.approx(min(value, most or math.inf))
    assert capped(told, 0.0) == told


@pytest.mark.parametrize("lie", [0.0, 1e9])
def test_one_of_a_clusters_fits_moves_their_sum_by_two_of_the_others(lie: float) -> None:
    fits = {"a": 0.9, "b": 1.1, "c": 1.3, "d": 1.2}
    guessing = math.log(10)
    assert Caps().fits(fits, guessing, "fit") == fits
    lying = fits | {"d": lie}
    assert abs(sum(Caps().fits(lying, guessing, "fit").values()) - sum(fits.values())) <= 2 * 1.1
    assert Caps().fits({"d": lie}, guessing, "fit") == {"d": min(lie, 2 * guessing)}


def telling(matrix: torch.Tensor, examples: float = 10.0) -> Signature:
    """One that has the same prototypes as all others, and this covariance."""
    return Signature(torch.full((2,), examples / 2), torch.ones(2, len(matrix)), triangle(matrix))


def honest_covariances(count: int = 5) -> dict[str, Signature]:
    roots = torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(0))
    return {f"client-{i}": telling(root @ root.T) for i, root in enumerate(roots)}


def pooled(told: dict[str, Signature]) -> np.ndarray:  # type: ignore[type-arg]
    """The covariance that is made of it, before it is shrunk."""
    covariance = discriminant_of([list(told.values())]).covariance.double().numpy()
    mean = np.trace(covariance) / len(covariance)
    return (covariance - SHRINKAGE * mean * np.eye(len(covariance))) / (1 - SHRINKAGE)


@pytest.mark.parametrize(
    "lie",
    [
        1e12 * torch.eye(4),
        -1e12 * torch.eye(4),
        1e12 * torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0])),
        1e12 * torch.ones(4, 4),
        1e12 * (torch.ones(4, 4) - torch.eye(4)),
        torch.zeros(4, 4),
    ],
    ids=["huge", "negative", "indefinite", "in one direction", "without variances", "nothing"],
)
def test_one_covariance_moves_that_of_all_by_a_bounded_amount(lie: torch.Tensor) -> None:
    """By hand: a covariance, with a trace up to twice the median of the others', of six that count alike."""
    others = honest_covariances()
    counted = Caps().features({**others, "liar": telling(lie)})
    for name, own in others.items():
        torch.testing.assert_close(counted[name].covariance, own.covariance, atol=1e-5, rtol=1e-5)
    said = from_triangle(counted["liar"].covariance).double().numpy()
    most = 2 * np.median([float(from_triangle(own.covariance).trace()) for own in others.values()])
    assert np.linalg.eigvalsh(said).min() >= -1e-5 * most
    assert np.trace(said) <= most * (1 + 1e-5)
    moved = pooled(counted) - 5 / 6 * pooled(others)
    np.testing.assert_allclose(moved, said / 6, atol=1e-4)
    assert np.linalg.norm(moved) <= most / 6 * (1 + 1e-4)


def test_a_covariance_that_counts_for_less_is_logged_once_and_others_stay(messages: list[str]) -> None:
    told = {**honest_covariances(3), "large": telling(1e3 * torch.eye(4)), "silent": telling(torch.eye(4))}
    told["silent"] = replace(told["silent"], covariance=None)
    caps = Caps()
    for _ in range(2):
        counted = caps.features(told)
        assert counted.keys() == told.keys()
        assert counted["silent"] is told["silent"]
        assert torch.equal(counted["large"].prototypes, told["large"].prototypes)
    (line,) = messages
    assert line.startswith("large says covariance of 4000; it counts as ")
    plain = Caps(max_fit=0.0).features(told)
    torch.testing.assert_close(plain["large"].covariance, told["large"].covariance)


def test_covariances_of_each_class_are_scaled_alike_and_then_each_is_bounded_by_the_largest_of_the_others() -> None:
    """A class with little weight may vary more than the mean: no other client may have it."""

    def of_classes(first: torch.Tensor, second: torch.Tensor, counts: list[float]) -> Signature:
        return Signature(torch.tensor(counts), torch.ones(2, 4), triangle(torch.stack([first, second])))

    eye = torch.eye(4)
    told = {f"client-{i}": of_classes(eye, 3.0 * eye, [5.0, 5.0]) for i in range(3)}  # 8 on the mean
    told["rare"] = of_classes(eye, 9.0 * eye, [9.0, 1.0])  # 7.2; its largest is 36, and twice the others' is 24
    told["large"] = of_classes(10.0 * eye, 30.0 * eye, [5.0, 5.0])  # 80, and twice the median of the others is 16
    told["negative"] = of_classes(-eye, eye, [5.0, 5.0])
    counted = {name: from_triangle(own.covariance) for name, own in Caps().features(told).items()}
    torch.testing.assert_close(counted["client-0"], from_triangle(told["client-0"].covariance))
    torch.testing.assert_close(counted["rare"], torch.stack([eye, 6.0 * eye]))
    torch.testing.assert_close(counted["large"], torch.stack([2.0 * eye, 6.0 * eye]))
    torch.testing.assert_close(counted["negative"], torch.stack([0.0 * eye, eye]))


def test_axes_are_bounded_as_the_covariances_that_they_stand_for() -> None:
    """The numbers of the test before: axes are as long as the root of a variance."""

    def of_classes(first: float, second: float, counts: list[float]) -> Signature:
        axes = torch.stack([variance**0.5 * torch.eye(4) for variance in (first, second)])
        return Signature(torch.tensor(counts), torch.ones(2, 4), axes)

    told = {f"client-{i}": of_classes(1.0, 3.0, [5.0, 5.0]) for i in range(3)}
    told["rare"] = of_classes(1.0, 9.0, [9.0, 1.0])
    told["large"] = of_classes(10.0, 30.0, [5.0, 5.0])
    counted = Caps().features(told)
    torch.testing.assert_close(counted["client-0"].covariance, told["client-0"].covariance)
    torch.testing.assert_close(counted["rare"].covariance, of_classes(1.0, 6.0, [9.0, 1.0]).covariance)
    torch.testing.assert_close(counted["large"].covariance, of_classes(2.0, 6.0, [5.0, 5.0]).covariance)
    torch.testing.assert_close(Caps(max_fit=0.0).features(told)["large"].covariance, told["large"].covariance)


def test_a_prototype_is_no_longer_than_twice_the_longest_of_the_others_whatever_its_class(messages: list[str]) -> None:
    def of(*lengths: float) -> Signature:
        return Signature(torch.tensor([5.0, 5.0, 0.0]), torch.tensor(lengths).unsqueeze(1) * torch.eye(3))

    told = {"a": of(1.0, 2.0, 0.0), "b": of(3.0, 1.0, 0.0), "c": of(4.0, 1.0, 0.0), "liar": of(1e6, 5.0, 0.0)}
    counted = Caps().features(told)
    for name in ("a", "b", "c"):
        assert counted[name] is told[name]
    torch.testing.assert_close(counted["liar"].prototypes, of(6.0, 5.0, 0.0).prototypes)
    assert messages == ["liar says prototypes of 1e+06; it counts as 6, bounded by the other clients'"]
    assert Caps(max_fit=0.0).features(told)["liar"] is told["liar"]


def test_who_fits_much_worse_than_the_others_can_be_let_count(messages: list[str]) -> None:
    fits, guessing = {"a": 0.9, "b": 1.1, "c": 1.3, "d": 4.0, "e": 9.0}, math.log(10)
    for _ in range(2):
        assert Caps(max_fit=0.0).fits(fits, guessing, "fit") == fits | {"e": 2 * guessing}
        assert Caps(max_fit=5.0).fits(fits, guessing, "fit") == fits | {"e": 2 * guessing}
    messages.clear()
    caps = Caps(max_fit=2.0)
    for _ in range(2):
        assert caps.fits(fits, guessing, "fit") == fits | {"d": pytest.approx(2.4), "e": pytest.approx(2.4)}
    said = "{} says fit of {}; it counts as 2.4, bounded by the other clients'"
    assert messages == [said.format("d", 4), said.format("e", 9)]


def test_the_caps_of_a_run_are_its_settings() -> None:
    config = RunConfig.from_flower({"max-weight": 3.0, "max-fit": 7.0})
    strategy = make_strategy(config, ClientRegistry(0), build_federation(config, 4), torch.device("cpu"))
    assert isinstance(strategy.method, DisUE)
    assert isinstance(strategy.collector, PlainCollector)
    for caps in (strategy.method.caps, strategy.collector.limits.caps):
        assert (caps.max_weight, caps.max_fit) == (3.0, 7.0)


def test_an_update_that_claims_too_much_counts_for_less_with_its_labels_in_proportion(  # type: ignore[no-untyped-def]
    make_updates, messages: list[str]
) -> None:
    counts = torch.tensor([6.0, 3.0, 1.0])
    signature = Signature(counts, torch.ones(3, 64))
    updates = [replace(own, num_examples=10, signature=signature, train_loss=0.5) for own in make_updates(4)]
    lying = replace(
        updates[2], num_examples=10**6, signature=Signature(1e5 * counts, torch.ones(3, 64)), train_loss=1e9
    )
    limits = Limits(caps=Caps(10.0))
    for _ in range(2):
        counted = limits.weighed([*updates[:2], lying, updates[3]])
        assert [own.num_examples for own in counted] == [10, 10, 100, 10]
        assert counted[2].signature.label_counts.tolist() == [60.0, 30.0, 10.0]
        assert counted[2].train_loss == 10.0
        assert all(torch.equal(own.signature.label_counts, counts) for own in (*counted[:2], counted[3]))
    said = "client-2 says {}; it counts as {}, bounded by the other clients'"
    once = [said.format("num-examples of 1e+06", 100), said.format("train-loss of 1e+09", 10)]
    assert [line for line in messages if "client-2" in line] == once


class InGivenClusters(ClusteredMethod[MethodState]):
    """Clients are in two clusters."""

    def assign(self, state: MethodState, updates: Sequence[ClientUpdate], round: Round) -> Step[MethodState]:
        return Step(replace(state, clusters={update.name: int(update.name < "d") for update in updates}))


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        (dict(zip("abcdefgh", [20, 30, 10**7, *[1000] * 5], strict=True)), {"c": 250}),
        (dict(zip("bcdefgh", [20, 10**7, *[1000] * 5], strict=True)), {"c": 10_000}),
        (dict(zip("abcdefgh", [20, 30, 240, *[1000] * 5], strict=True)), {}),
    ],
    ids=["a cluster of small clients", "of two", "an honest federation"],
)
def test_a_claim_is_measured_by_the_clients_of_its_cluster_too(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, int], counted: dict[str, int]
) -> None:
    def train(name: str, request: TrainRequest, message: Message) -> Message:
        assert request.start is not None
        return TrainReply(request.start, told[name], 0.5, 1).to_message(message)

    grid = ChangingGrid(answering_app(train), {}, [{"name": name} for name in told])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, len(told), 1.0)
    steps, collector = calls_of(monkeypatch, InGivenClusters, "step"), PlainCollector(Limits(caps=Caps(10.0)))
    strategy = FederatedStrategy(registry, Participation(num_rounds=1), InGivenClusters("mlp"), collector)
    strategy.start(grid, ArrayRecord({"w": torch.zeros(3)}), num_rounds=1, timeout=10.0)
    assert {update.name: update.num_examples for update in steps[0].given["updates"]} == told | counted


def test_honest_clients_with_much_more_data_than_most_are_not_rejected(run) -> None:  # type: ignore[no-untyped-def]
    """With few examples there is soon nothing left to learn, so that the median is short."""
    result = run(clients=12, scenario="quantity", alpha=0.02, method="fedavg", num_server_rounds=4, local_epochs=4)
    assert [row["clients_rejected"] for row in result.rows] == [0, 0, 0, 0]


def test_what_is_no_longer_than_the_model_allows_is_plausible_however_short_the_others_are() -> None:
    start = {"w": torch.full((4,), 3.0)}  # of length 6
    steps = {"a": 0.001, "b": 0.001, "c": 25.0, "d": 35.0}  # and these are half as long as the updates
    updates = [ClientUpdate(name, start, shifted(start, step), 1) for name, step in steps.items()]
    assert Limits(max_norm=10.0).implausible(*measured([*updates, updates[0]])).keys() == {"d"}
