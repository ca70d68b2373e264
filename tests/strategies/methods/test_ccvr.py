"""CCVR: what it pools, what it draws, how it trains the head; and that training goes on without."""

from dataclasses import replace
from math import erf, sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_loops import CLIENTS, CONFIG, ROUNDS, carried_out
from safetensors.torch import load_file
from tests_support import calls_of, numbered_classes
from torch import Tensor, nn

from client_app.release import ReleasePolicy
from disue.covariance import covariances_of_strata
from disue.data import build_federation
from disue.errors import ConfigError, DataError
from disue.models import HEAD, State, build_model, same_model
from disue.signature import Signature
from disue.tasks import Regression
from server_app.checks import check_names
from server_app.config import RunConfig
from strategies.aggregation.caps import Caps
from strategies.distillation import calibration
from strategies.distillation.calibration import BATCH, drawn, orthogonal_noise, pooled, roots, trained_heads
from strategies.distillation.server import Server
from strategies.methods import ccvr as ccvr_module
from strategies.methods.ccvr import CCVR, CCVRSettings
from strategies.methods.fedavg import FedAvg
from strategies.methods.parts import Parts
from strategies.rounds.round import Round
from strategies.updates import ClientUpdate

CPU = torch.device("cpu")
CLASSES, FEATURES = 4, 5


def told_of(x: Tensor, y: Tensor, classes: int = CLASSES) -> Signature:
    """Return what a client with these features says of them."""
    counts = torch.bincount(y, minlength=classes).float()
    means = torch.zeros(classes, x.shape[1]).index_add_(0, y, x) / counts.clamp(min=1).unsqueeze(1)
    return Signature(counts, means, covariances_of_strata(x, y, means))


def examples(seed: int, count: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=g)
    return torch.randn(count, FEATURES, generator=g) * (1.0 + y.unsqueeze(1)) + y.unsqueeze(1), y


# --- the statistic -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 100))
def test_what_is_pooled_is_the_mean_and_the_unbiased_covariance_of_all_examples_together(
    sizes: list[int], seed: int
) -> None:
    clients = [examples(seed + i, size, classes=CLASSES - i % 2) for i, size in enumerate(sizes)]
    counts, means, covariances = pooled([told_of(x, y) for x, y in clients])
    x, y = (torch.cat(own).numpy() for own in zip(*clients, strict=True))
    for label in range(CLASSES):
        own = x[y == label].astype(np.float64)
        assert counts[label] == len(own)
        if len(own):
            np.testing.assert_allclose(means[label], own.mean(axis=0), atol=1e-4)
        expected = np.cov(own.T, ddof=1) if len(own) > 1 else np.zeros((FEATURES, FEATURES))
        np.testing.assert_allclose(covariances[label], expected, atol=1e-3, rtol=1e-4)


def test_the_server_gets_it_of_the_clients_data_under_the_average_of_the_round(monkeypatch: Any) -> None:
    """From the real clients, and none of them counts for less than it says."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    monkeypatch.setattr(calibration, "pooled", lambda told: seen.append(pooled(told)) or seen[-1])
    state = carried_out(method(virtual_features=10), (1, ROUNDS)).reached()
    assert len(seen) == ROUNDS
    federation = build_federation(CONFIG, CLIENTS)
    data = [federation.client(i).train for i in range(CLIENTS)]
    x, y = torch.cat([own.x for own in data]), torch.cat([own.y for own in data]).numpy()
    model = build_model("mlp", (1, 8, 8), 10)
    model.load_state_dict(state.average)
    with torch.no_grad():
        features = model.body(x).double().numpy()
    counts, means, covariances = seen[-1]
    assert counts.tolist() == np.bincount(y, minlength=10).tolist()
    for label in range(10):
        np.testing.assert_allclose(means[label], features[y == label].mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(covariances[label], np.cov(features[y == label].T, ddof=1), atol=1e-4)


# --- what is drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 2, 0])
def test_a_root_times_its_transpose_is_the_covariance(rank: int) -> None:
    factor = torch.randn(3, 4, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = roots(factor @ factor.mT)
    assert torch.equal(found, found.tril())
    torch.testing.assert_close(found @ found.mT, factor @ factor.mT, rtol=1e-6, atol=1e-9)


def test_what_is_no_covariance_counts_as_the_nearest_one() -> None:
    found = roots(torch.tensor([[[2.0, 0.0], [0.0, -1.0]]], dtype=torch.float64))
    torch.testing.assert_close(
        found @ found.mT, torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]).double(), rtol=1e-6, atol=1e-9
    )


def test_as_many_features_are_drawn_of_each_class_that_anybody_has_with_its_mean_and_covariance() -> None:
    clients = [examples(i, 60, classes=3) for i in range(3)]
    counts, means, covariances = pooled([told_of(x, y) for x, y in clients])
    covariances[1] = torch.ones(FEATURES, FEATURES)  # of rank one
    n = 20_000
    features, labels = drawn(counts, means, covariances, n, torch.Generator().manual_seed(0))
    counted = torch.bincount(labels, minlength=CLASSES)
    assert counted.tolist() == pytest.approx([n * CLASSES / 3] * 3 + [0], abs=1)
    assert int(counted.sum()) == n * CLASSES
    for label in range(3):
        own, spread = features[labels == label].double(), covariances[label]
        largest = float(spread.diagonal().max())
        np.testing.assert_allclose(own.mean(dim=0), means[label], atol=5 * sqrt(largest / n))
        np.testing.assert_allclose(own.T.cov(), spread, atol=5 * largest * sqrt(2.0 / n))
    flat = features[labels == 1] - means[1]
    assert float((flat - flat[:, :1]).abs().max()) < 1e-4


def test_noise_is_standard_normal_in_pairs_of_opposites_and_exactly_so_in_whole_blocks() -> None:
    noise = orthogonal_noise(3 * 2 * FEATURES, FEATURES, torch.Generator().manual_seed(0)).double()
    assert torch.equal(noise[::2], -noise[1::2])
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(FEATURES).double(), atol=1e-5, rtol=0.0)
    one = orthogonal_noise(10_000, 3, torch.Generator().manual_seed(1)) @ torch.tensor([0.6, 0.0, 0.8])
    assert float(one.square().mean()) == pytest.approx(1.0, abs=0.01)
    assert float(one.abs().max()) <= 3**0.5 + 1e-6  # each as long as the usual one
    few = orthogonal_noise(5, FEATURES, torch.Generator().manual_seed(0))
    assert torch.equal(few, noise[:5].float())


# --- the head ----------------------------------------------------------------------------------------


def test_heads_are_trained_as_pytorch_does_it_each_on_its_own() -> None:
    samples = [examples(i, BATCH + 30) for i in range(2)]
    layers = [nn.Linear(FEATURES, CLASSES) for _ in samples]
    starts = [{f"{HEAD}{name}": tensor.detach().clone() for name, tensor in own.state_dict().items()} for own in layers]
    found = trained_heads(starts, samples, 3, 0.01)
    for layer, (x, y), head in zip(layers, samples, found, strict=True):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * 2)
        for _ in range(3):
            for batch in torch.arange(BATCH + 30).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(layer(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
        for name, tensor in layer.state_dict().items():
            torch.testing.assert_close(head[f"{HEAD}{name}"], tensor, rtol=1e-4, atol=1e-6)


def test_a_head_that_is_biased_to_a_common_class_is_as_good_at_a_rare_one_afterwards() -> None:
    """Of two normal distributions one deviation from the boundary on either side both have Phi(1) on their own."""
    g = torch.Generator().manual_seed(0)

    def sample(label: int, count: int) -> Tensor:
        return torch.randn(count, 1, generator=g) + (2.0 * label - 1.0)

    def recalls(head: State) -> list[float]:
        logits = [sample(label, 20_000) @ head[f"{HEAD}weight"].T + head[f"{HEAD}bias"] for label in (0, 1)]
        return [float((own.argmax(dim=1) == label).double().mean()) for label, own in enumerate(logits)]

    def client(common: int, rare: int) -> Signature:
        y = torch.tensor([0] * common + [1] * rare)
        return told_of(torch.cat([sample(0, common), sample(1, rare)]), y, classes=2)

    told = [client(2000, 100), client(3000, 200)]
    biased = {f"{HEAD}weight": torch.tensor([[-1.0], [1.0]]), f"{HEAD}bias": torch.tensor([3.0, -3.0])}
    assert min(recalls(biased)) < 0.1
    features, labels = drawn(*pooled(told), 2000, g)
    (head,) = trained_heads([biased], [(features, labels)], 10, 0.01)
    after = recalls(head)
    assert after == pytest.approx([(1 + erf(1 / sqrt(2))) / 2] * 2, abs=0.05)


# --- rounds ------------------------------------------------------------------------------------------


def method(**settings: Any) -> CCVR:
    server = Server(build_federation(CONFIG, CLIENTS).task, "mlp", CPU, CONFIG.seed)
    return CCVR(server, CCVRSettings(**settings))


@pytest.mark.parametrize("per_node", [1, 2])
def test_training_goes_on_from_fedavgs_model_and_only_the_head_is_another_also_after_a_break(per_node: int) -> None:
    state = carried_out(method(), (1, ROUNDS), per_node).reached()
    fedavg = carried_out(FedAvg("mlp"), (1, ROUNDS), per_node).reached().universals["mlp"]
    assert same_model(state.average, fedavg)
    differing = {name for name, tensor in state.universals["mlp"].items() if not torch.equal(tensor, fedavg[name])}
    assert differing == {f"{HEAD}weight", f"{HEAD}bias"}
    assert list(state.universals["mlp"]) == list(fedavg)


def test_without_epochs_nobody_is_asked_and_it_is_fedavg(run) -> None:  # type: ignore[no-untyped-def]
    ccvr, fedavg = run(method="ccvr", calibration_epochs=0), run(method="fedavg")
    models = [load_file(own.directory / "universal.safetensors") for own in (ccvr, fedavg)]
    assert same_model(*models)
    assert ccvr.summary["bytes_up"] == fedavg.summary["bytes_up"]


@pytest.mark.parametrize("seed", [100, 101, 102])
def test_under_label_skew_its_universal_model_is_better_than_fedavgs(run, seed: int) -> None:  # type: ignore[no-untyped-def]
    settings = {"clients": 10, "scenario": "dirichlet", "alpha": 0.1, "num_server_rounds": 5, "local_epochs": 2}
    ccvr, fedavg = (run(method=own, seed=seed, **settings) for own in ("ccvr", "fedavg"))
    accuracies = [[row["universal_accuracy"] for row in own.rows] for own in (ccvr, fedavg)]
    assert [row["average_accuracy"] for row in ccvr.rows] == accuracies[1]
    assert all(better > worse for better, worse in zip(*accuracies, strict=True))
    assert accuracies[0][-1] > accuracies[1][-1] + 0.03


def test_a_client_tells_a_covariance_of_each_class_once_a_round_and_all_are_asked(run) -> None:  # type: ignore[no-untyped-def]
    ccvr, fedavg, half = (
        run(method=name, clients=6, virtual_features=10, calibration_share=share)
        for name, share in (("ccvr", 1.0), ("fedavg", 1.0), ("ccvr", 0.5))
    )
    numbers = 10 * (1 + 64 + 64 * 65 // 2)
    assert ccvr.summary["bytes_up"] - fedavg.summary["bytes_up"] == pytest.approx(2 * 6 * 4 * numbers, rel=0.02)
    assert half.summary["bytes_up"] - fedavg.summary["bytes_up"] == pytest.approx(2 * 3 * 4 * numbers, rel=0.02)


def test_who_does_not_answer_is_left_out_with_a_warning(run, monkeypatch, messages: list[str]) -> None:  # type: ignore[no-untyped-def]
    """The others calibrate; where there are none, the average stays, and the log says so."""
    features, broken = ReleasePolicy.features, {"left": 1}

    def failing(self: ReleasePolicy, *arguments: Any) -> Signature:
        broken["left"] -= 1
        if broken["left"] >= 0:
            raise DataError("no disk")
        return features(self, *arguments)

    monkeypatch.setattr(ReleasePolicy, "features", failing)
    one = run(method="ccvr", num_server_rounds=1)
    said = [line for line in messages if "told nothing of its features: " in line]
    assert said == ["client-0 told nothing of its features: DataError: no disk"]
    assert one.rows[0]["universal_accuracy"] != one.rows[0]["average_accuracy"]
    broken["left"] = 10**6
    none = run(method="ccvr", num_server_rounds=1)
    assert "round 1: no client told anything of its features; the head stays as it is" in messages
    fedavg = run(method="fedavg", num_server_rounds=1)
    assert same_model(*(load_file(own.directory / "universal.safetensors") for own in (none, fedavg)))


def test_its_keys_reach_the_method(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    steps = calls_of(monkeypatch, CCVR, "step")
    run(method="ccvr", num_server_rounds=1, calibration_epochs=CCVRSettings().calibration_epochs)
    own = {"virtual_features": 20, "calibration_epochs": 3, "calibration_learning_rate": 0.5, "calibration_share": 0.3}
    run(method="ccvr", num_server_rounds=1, prototype_limit=2.0, **own)
    usual, given = (vars(expected) for expected in (CCVRSettings(), CCVRSettings(prototype_limit=2.0, **own)))
    assert [{key: getattr(step.of.settings, key) for key in usual} for step in steps] == [usual, given]


# --- what one client can do --------------------------------------------------------------------------


def calibrated(told: dict[str, Signature], caps: Caps | None = None, number: int = 1, **settings: Any) -> State:
    """Return the universal model after a round in which clients told this of their features."""
    server = Server(numbered_classes(CLASSES), "mlp", CPU, 0)
    own, start = CCVR(server, CCVRSettings(virtual_features=200, **settings), caps), server.initial("mlp")
    updates = [ClientUpdate(name, start, start, 10) for name in told]
    round = Round(number, dict.fromkeys(told, "mlp"), features=lambda models, strata, share: told)
    return own.step(own.begin(start), updates, round).state.universals["mlp"]


def telling(seed: int, count: int = 60) -> Signature:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=g)
    return told_of(torch.randn(count, 64, generator=g) + y.unsqueeze(1), y)


HONEST = {f"client-{i}": telling(i) for i in range(5)}


def test_the_draws_are_those_of_the_seed_and_the_round() -> None:
    first, again, later = (calibrated(HONEST, number=number) for number in (1, 1, 2))
    assert same_model(first, again)
    assert not same_model(first, later)


def test_a_client_counts_for_so_many_times_the_median_of_the_others_examples_at_most() -> None:
    liar = telling(9)
    claimed = {**HONEST, "liar": replace(liar, label_counts=1e9 * liar.label_counts)}
    capped = {**HONEST, "liar": replace(liar, label_counts=10.0 * liar.label_counts)}
    found, expected = calibrated(claimed, Caps(10.0)), calibrated(capped)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_class_counts_nothing_that_a_client_counts_and_has_no_prototype_of() -> None:
    told, seldom = telling(9), torch.tensor([1.0, 1.0, 0.0, 0.0])
    own = replace(told, label_counts=told.label_counts * seldom, prototypes=told.prototypes * seldom.unsqueeze(1))
    liar = replace(own, label_counts=torch.maximum(own.label_counts, torch.full((CLASSES,), 10.0)))
    expected = calibrated({**HONEST, "own": own})
    assert same_model(calibrated({**HONEST, "own": liar}), expected)
    nothing = replace(told, prototypes=torch.zeros_like(told.prototypes))
    assert same_model(calibrated({**HONEST, "own": nothing}), calibrated(HONEST))
    assert same_model(calibrated({"own": nothing}), Server(numbered_classes(CLASSES), "mlp", CPU, 0).initial("mlp"))


def test_a_prototype_that_is_far_from_the_others_does_not_count_where_that_is_limited() -> None:
    liar = telling(9)
    far = {**HONEST, "liar": replace(liar, prototypes=liar.prototypes + 1e5)}
    expected = calibrated(HONEST, prototype_limit=3.0)
    assert same_model(calibrated(far, prototype_limit=3.0), expected)
    assert not same_model(calibrated(far), calibrated(HONEST))


def test_who_has_no_example_left_of_what_is_believed_is_left_out() -> None:
    liar = telling(9)
    far, little = liar.prototypes.clone(), torch.tensor([9.9e-4, 1e-5, 1e-5, 1e-5])
    far[0] += 1e5
    told = {**HONEST, "liar": replace(liar, prototypes=far, label_counts=little)}
    assert same_model(calibrated(told, prototype_limit=3.0), calibrated(HONEST, prototype_limit=3.0))


@pytest.mark.parametrize("lie", [1e12, -1e12])
def test_with_the_wildest_claims_the_model_is_finite(lie: float) -> None:
    liar = telling(9)
    wild = {
        "label_counts": torch.full_like(liar.label_counts, 1e12),
        "prototypes": torch.full_like(liar.prototypes, 1e6),
        "covariance": torch.full_like(liar.covariance, lie),
    }
    for told in ({"liar": replace(liar, **wild)}, {**HONEST, "liar": replace(liar, **wild)}):
        state = calibrated(told, Caps(10.0))
        assert all(bool(tensor.isfinite().all()) for tensor in state.values())


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"share-label-counts": False}, "share-label-counts: got False; method 'ccvr' pools covariances by them"),
        ({"client-models": "cnn,mlp"}, "client-models: got 'mlp' beside model 'cnn'; method 'ccvr' needs one"),
        ({"privacy": "dp"}, "method: got 'ccvr'; privacy=dp does not cover how a client's features vary"),
        ({"privacy": "secure"}, "method: got 'ccvr'; the server gets sums only"),
    ],
)
def test_what_it_does_not_go_with_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_names(RunConfig.from_flower({"method": "ccvr", **settings}))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def parts(task: Any) -> Parts:
    return Parts(RunConfig(method="ccvr", model="mlp"), SimpleNamespace(task=task), CPU)  # type: ignore[arg-type]


def test_a_task_without_classes_and_a_model_with_too_many_features_are_refused(monkeypatch: Any) -> None:
    numbers = Regression(("a",), (5,), (0.0,) * 5, (1.0,) * 5, (0.0,), (1.0,))
    with pytest.raises(ConfigError, match="^method: got 'ccvr'; it draws features of classes and this task has none"):
        CCVR.build(parts(numbers))
    assert isinstance(CCVR.build(parts(numbered_classes(3))), CCVR)
    monkeypatch.setattr(ccvr_module, "MOST_MODEL_FEATURES", 63)
    with pytest.raises(ConfigError, match="^model: got 'mlp', with 64 features; .* use a model with at most 63$"):
        CCVR.build(parts(numbered_classes(3)))
