"""What a run keeps to choose an expert with, against loops over single samples and prototypes."""

from pathlib import Path

import pytest
import torch

from disue.errors import DataError
from disue.models import build_model, get_state
from disue.prototypes import spread
from disue.runs.gate import GATE, Gate, Knowledge, Space
from disue.tasks import ImageClassification

TASK = ImageClassification(("a", "b", "c"), (1, 4, 4), (0.5,), (0.2,))


def some_gate(seed: int = 0) -> Gate:
    """Three experts in two feature spaces; of some classes a client has no example."""
    rng = torch.Generator().manual_seed(seed)
    spaces = [Space(model, get_state(build_model(model, TASK.shape, 3, seed))) for model in ("mlp", "cnn")]
    experts = {
        name: Knowledge(
            cluster, torch.tensor([[2.0, 0.0, 1.0], [0.0, 5.0, 3.0]]), torch.randn(2, 3, 64, generator=rng), space
        )
        for name, cluster, space in (("0", 0, 0), ("1", 1, 0), ("1-cnn", 1, 1))
    }
    experts["1"] = Knowledge(
        1, torch.ones(1, 3), torch.randn(1, 3, 64, generator=rng), 0, torch.zeros(3).log_softmax(0)
    )
    names = {"x": 0, "y": 1}
    return Gate(spaces, experts, "subspace", {name: torch.randn(16, 3, generator=rng) for name in names}, names)


def test_distances_are_those_to_the_nearest_prototype_that_a_client_has() -> None:
    gate = some_gate()
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = gate.distances(x, TASK)
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
            assert float(found[n, k]) == pytest.approx(nearest / units[expert.space], rel=1e-4)
    assert gate.choose(x, TASK) == [["0", "1", "1"][int(row.argmin())] for row in found]
    del gate.experts["1"]
    assert gate.choose(x, TASK) == [["0", "1-cnn"][int(row.argmin())] for row in gate.distances(x, TASK)]


def test_spread_is_the_variance_of_the_examples() -> None:
    counts, points = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.randn(2, 2, 4)
    examples = torch.stack([points[0, 0]] * 3 + [points[1, 0]] + [points[1, 1]] * 2)
    assert spread(counts, points) == pytest.approx(float(examples.var(dim=0, correction=0).sum()), rel=1e-5)


def test_it_is_the_same_after_a_file(tmp_path: Path) -> None:
    gate = some_gate()
    gate.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [GATE]
    again = Gate.load(tmp_path, TASK)
    assert again is not None
    assert again.experts.keys() == gate.experts.keys()
    assert (again.signature, again.clusters) == (gate.signature, gate.clusters)
    assert all(torch.equal(again.descriptions[name], told) for name, told in gate.descriptions.items())
    assert again.experts["0"].log_prior is None
    assert again.experts["1"].log_prior is not None
    x = torch.randn(4, 1, 4, 4)
    assert torch.equal(again.distances(x, TASK), gate.distances(x, TASK))


def test_what_does_not_fit_the_task_is_damaged(tmp_path: Path) -> None:
    some_gate().save(tmp_path)
    with pytest.raises(DataError, match=r"gate.safetensors' does not fit \(.* of model '.*' as it is here\); restore"):
        Gate.load(tmp_path, ImageClassification(TASK.class_names, (3, 8, 8), (0.5,) * 3, (0.2,) * 3))
    assert Gate.load(tmp_path / "elsewhere", TASK) is None
