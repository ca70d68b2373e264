"""What a run keeps to choose an expert with, against SciPy, and loops over single samples and prototypes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from disue.discriminant import UNKNOWN, Normal
from disue.early import early_features
from disue.errors import DataError
from disue.files import read_tensors, write_tensors
from disue.models import build_model, get_state
from disue.prototypes import spread
from disue.runs.gate import GATE, Gate, Knowledge, Space
from disue.tasks import ImageClassification

TASK = ImageClassification(("a", "b", "c"), (1, 4, 4), (0.5,), (0.2,))
FEATURES = 64


def spread_out(rng: torch.Generator, size: int = FEATURES) -> torch.Tensor:
    """Return a covariance."""
    root = torch.randn(size, size, generator=rng) / size**0.5
    return root @ root.T + 0.1 * torch.eye(size)


def some_gate(seed: int = 0) -> Gate:
    """Three experts in two feature spaces; of some classes there is no example."""
    rng = torch.Generator().manual_seed(seed)
    spaces = [
        Space(
            model,
            get_state(build_model(model, TASK.shape, 3, seed)),
            spread_out(rng),
            Normal(torch.randn(FEATURES, generator=rng), spread_out(rng)),
        )
        for model in ("mlp", "cnn")
    ]
    experts = {
        name: Knowledge(cluster, torch.tensor([[2.0, 0.0, 1.0]]), torch.randn(1, 3, FEATURES, generator=rng), space)
        for name, cluster, space in (("0", 0, 0), ("1", 1, 0), ("1-cnn", 1, 1))
    }
    experts["1"] = replace(experts["1"], label_counts=torch.ones(1, 3), log_prior=torch.zeros(3).log_softmax(0))
    names = {"x": 0, "y": 1}
    return Gate(spaces, experts, "subspace", {name: torch.randn(16, 3, generator=rng) for name in names}, names)


def early_gate() -> Gate:
    """Two experts in the space of early features."""
    rng, early = torch.Generator().manual_seed(3), 32
    space = Space("cnn", get_state(build_model("cnn", TASK.shape, 3, 5)), spread_out(rng, early), None, early)
    experts = {
        str(k): Knowledge(k, torch.ones(1, 3), 0.3 * torch.randn(1, 3, early, generator=rng), 0) for k in range(2)
    }
    return Gate([space], experts)


def before(gate: Gate, seed: int = 0) -> Gate:
    """Return a gate as in runs of format 1: a row of prototypes for each client, and no covariance."""
    rng = torch.Generator().manual_seed(seed)
    spaces = [Space(space.model, space.state) for space in gate.spaces]
    counts = torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 3.0]])
    experts = {
        name: replace(own, label_counts=counts.clone(), points=torch.randn(2, 3, FEATURES, generator=rng))
        for name, own in gate.experts.items()
    }
    return replace(gate, spaces=spaces, experts=experts)


def some_images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def test_an_image_goes_where_it_is_most_probable_relative_to_images_of_any_kind() -> None:
    gate, x = some_gate(), some_images()
    expected = np.full((3, 5, 3), -np.inf)
    for k, own in enumerate(gate.experts.values()):
        space = gate.spaces[own.space]
        assert space.covariance is not None
        assert space.background is not None
        features = gate.features(own.space, x, TASK).double().numpy()
        background = multivariate_normal(space.background.mean.double(), space.background.covariance.double())
        for c in range(3):
            if own.label_counts[0, c] > 0:
                pair = multivariate_normal(own.points[0, c].double(), space.covariance.double())
                expected[k, :, c] = pair.logpdf(features) - background.logpdf(features)
    found = gate.log_densities(x, TASK).double().numpy()
    np.testing.assert_allclose(found[expected > -np.inf], expected[expected > -np.inf], rtol=1e-3, atol=0.05)
    assert (found[expected == -np.inf] == np.float32(UNKNOWN)).all()
    evidence = logsumexp(expected, axis=2)
    np.testing.assert_allclose(gate.weights(x, TASK).numpy(), softmax(evidence, axis=0).T, atol=0.02)
    of_clusters = np.stack([evidence[0], np.logaddexp(*evidence[1:])])
    assert gate.choose(x, TASK) == [["0", "1"][k] for k in of_clusters.argmax(axis=0)]


def test_in_early_features_there_is_no_other_projection_and_nothing_is_taken_off(tmp_path: Path) -> None:
    early_gate().save(tmp_path)
    gate, x = Gate.load(tmp_path, TASK, 0), some_images()
    assert gate is not None
    network = build_model("cnn", TASK.shape, 3, 5).eval()
    features = early_features(network, x, torch.device("cpu"), 32).double().numpy()
    assert gate.spaces[0].covariance is not None
    for k, own in enumerate(gate.experts.values()):
        for c in range(3):
            pair = multivariate_normal(own.points[0, c].double(), gate.spaces[0].covariance.double())
            difference = gate.log_densities(x, TASK)[k, :, c].double().numpy() - pair.logpdf(features)
            np.testing.assert_allclose(difference, difference[0], atol=0.02)


def test_experts_of_a_cluster_count_together_for_as_much_as_one_would() -> None:
    """Of early features they are told the same."""
    gate = early_gate()
    first, second = gate.experts.values()
    three = replace(gate, experts={"0": first, "0-mlp": first, "1": second})
    x = torch.rand(50, *TASK.shape, generator=torch.Generator().manual_seed(1))
    expected, found = gate.weights(x, TASK), three.weights(x, TASK)
    torch.testing.assert_close(found[:, :2].sum(dim=1), expected[:, 0])
    torch.testing.assert_close(found[:, 2], expected[:, 1])
    assert three.choose(x, TASK) == gate.choose(x, TASK)


@pytest.mark.parametrize("early", [[-1], [1.5], ["many"], [True], [], [31], 32], ids=str)
def test_a_number_of_early_features_that_is_none_is_damage(tmp_path: Path, early: object) -> None:
    early_gate().save(tmp_path)
    tensors, about = read_tensors(tmp_path / GATE)
    write_tensors(tmp_path / GATE, tensors, about | {"early": early})
    with pytest.raises(DataError, match=GATE):
        Gate.load(tmp_path, TASK, 0)


def test_of_runs_of_format_1_the_nearest_prototype_that_a_client_has_decides() -> None:
    gate, x = before(some_gate()), some_images()
    found = gate.log_densities(x, TASK)
    units = {}
    for space in (0, 1):
        own = [e for e in gate.experts.values() if e.space == space]
        examples = [
            own_points[c]
            for e in own
            for counts, own_points in zip(e.label_counts, e.points, strict=True)
            for c in range(3)
            for _ in range(int(counts[c]))
        ]
        units[space] = float(torch.stack(examples).var(dim=0, correction=0).sum())
    for k, expert in enumerate(gate.experts.values()):
        features = gate.features(expert.space, x, TASK)
        for n in range(5):
            nearest = min(
                float((features[n] - expert.points[j, c]).square().sum())
                for j in range(len(expert.points))
                for c in range(3)
                if expert.label_counts[j, c] > 0
            )
            assert float(-found[k, n].max()) == pytest.approx(nearest / units[expert.space], rel=1e-4)
    assert gate.choose(x, TASK) == [["0", "1", "1"][int(row.argmin())] for row in -found.amax(dim=2).T]
    del gate.experts["1"]
    distances = -gate.log_densities(x, TASK).amax(dim=2).T
    assert gate.choose(x, TASK) == [["0", "1-cnn"][int(row.argmin())] for row in distances]


def test_spread_is_the_variance_of_the_examples() -> None:
    counts, points = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.randn(2, 2, 4)
    examples = torch.stack([points[0, 0]] * 3 + [points[1, 0]] + [points[1, 1]] * 2)
    assert spread(counts, points) == pytest.approx(float(examples.var(dim=0, correction=0).sum()), rel=1e-5)


@pytest.mark.parametrize("gate", [some_gate(), before(some_gate())], ids=["as now", "of format 1"])
def test_it_is_the_same_after_a_file(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [GATE]
    again = Gate.load(tmp_path, TASK, 0)
    assert again is not None
    assert again.experts.keys() == gate.experts.keys()
    assert (again.signature, again.clusters) == (gate.signature, gate.clusters)
    assert all(torch.equal(again.descriptions[name], told) for name, told in gate.descriptions.items())
    assert again.experts["0"].log_prior is None
    assert again.experts["1"].log_prior is not None
    x = some_images()
    assert torch.equal(again.log_densities(x, TASK), gate.log_densities(x, TASK))
    assert again.choose(x, TASK) == gate.choose(x, TASK)


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("covariance.0", torch.eye(FEATURES - 1), "the covariance of a space is torch.float32 \\(63, 63\\)"),
        ("covariance.0", torch.eye(FEATURES).double(), "the covariance of a space is torch.float64"),
        ("covariance.0", -torch.eye(FEATURES), "the covariance of a space is none"),
        ("covariance.0", torch.full((FEATURES, FEATURES), torch.nan), "'covariance.0' has values that are not finite"),
        ("background.1.mean", torch.zeros(1), "the mean of a space is torch.float32 \\(1,\\)"),
        ("background.1.covariance", torch.zeros(FEATURES, FEATURES), "the background of a space is none"),
        ("background.1.covariance", None, "background.1.covariance"),
        ("expert.0.prototypes", torch.zeros(1, 3, FEATURES + 1), "what it knows of expert 0 does not fit"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(key: str, tensor: torch.Tensor | None, said: str, tmp_path: Path) -> None:
    some_gate().save(tmp_path)
    tensors, about = read_tensors(tmp_path / GATE)
    tensors.pop(key)
    write_tensors(tmp_path / GATE, tensors | ({} if tensor is None else {key: tensor}), about)
    with pytest.raises(DataError, match=f"gate.safetensors' is damaged .*{said}") as caught:
        Gate.load(tmp_path, TASK, 0)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_task_is_damaged(tmp_path: Path) -> None:
    some_gate().save(tmp_path)
    with pytest.raises(DataError, match=r"gate.safetensors' does not fit \(.* of model '.*' as it is here\); restore"):
        Gate.load(tmp_path, ImageClassification(TASK.class_names, (3, 8, 8), (0.5,) * 3, (0.2,) * 3), 0)
    assert Gate.load(tmp_path / "elsewhere", TASK, 0) is None


def test_a_cluster_is_as_probable_as_its_experts_of_all_architectures_together() -> None:
    class Weighed(Gate):
        def weights(self, x: torch.Tensor, task: object) -> torch.Tensor:
            return torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1]])

    gate = Weighed(experts=some_gate().experts)
    assert [own.cluster for own in gate.experts.values()] == [0, 1, 1]
    assert gate.choose(torch.zeros(2, *TASK.shape), TASK) == ["1", "0"]
