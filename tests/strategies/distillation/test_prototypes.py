"""Distances to prototypes against loops over single numbers, and against scikit-learn's nearest class mean."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from disue.prototypes import nearest_prototypes
from disue.signature import Signature
from strategies.distillation.discriminant import mean_points, sum_counts
from strategies.distillation.prototypes import believed_counts, coverage, in_common_units, prototype_vote

CLIENTS, N, C, F = 3, 7, 4, 5


@dataclass(frozen=True)
class Known:
    """The prototypes of some clients."""

    label_counts: torch.Tensor
    points: torch.Tensor

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        return nearest_prototypes(features, self.label_counts, self.points)

    @property
    def told(self) -> list[Signature]:
        return [Signature(*own) for own in zip(self.label_counts, self.points, strict=True)]

    def pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As one cluster: counts and means."""
        return sum_counts(self.told).unsqueeze(0), mean_points(self.told).unsqueeze(0)


def some_prototypes(seed: int = 0, features: int = F) -> Known:
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor([[5.0, 0.0, 2.0, 0.0], [0.0, 0.0, 9.0, 0.0], [3.0, 3.0, 3.0, 0.0]])
    points = torch.randn(CLIENTS, C, features, generator=g) * (counts > 0).unsqueeze(-1)
    return Known(counts, points)


def some_features(seed: int = 1, features: int = F) -> torch.Tensor:
    return torch.randn(N, features, generator=torch.Generator().manual_seed(seed))


def brute_distance(prototypes: Known, x: list[float], c: int) -> float:
    """The squared distance to the nearest prototype of class ``c``; infinite where no client has the class."""
    squared = [
        sum((a - b) ** 2 for a, b in zip(x, prototypes.points[i, c].tolist(), strict=True))
        for i in range(len(prototypes.points))
        if prototypes.label_counts[i, c] > 0
    ]
    return min(squared, default=math.inf)


def test_distances_against_a_loop() -> None:
    prototypes, features = some_prototypes(), some_features()
    found = prototypes.distances(features)
    assert found.shape == (N, C)
    for n in range(N):
        for c in range(C):
            assert float(found[n, c]) == pytest.approx(brute_distance(prototypes, features[n].tolist(), c), rel=1e-4)
    assert bool(found[:, 3].isinf().all())


def test_the_zeros_of_an_absent_class_are_no_prototype() -> None:
    prototypes = some_prototypes()
    assert float(prototypes.distances(torch.zeros(1, F)).min()) > 0.0


def test_centres_are_the_means_of_all_examples_of_a_class() -> None:
    prototypes = some_prototypes()
    found = mean_points(prototypes.told)
    for c in range(C):
        weights = prototypes.label_counts[:, c].tolist()
        for f in range(F):
            values = prototypes.points[:, c, f].tolist()
            total = sum(w * value for w, value in zip(weights, values, strict=True))
            assert float(found[c, f]) == pytest.approx(total / sum(weights) if sum(weights) else 0.0, abs=1e-6)


def test_units_against_a_loop() -> None:
    """Two experts in spaces of another dimension and scale: spread alike, and the smallest distance is one."""
    experts = [some_prototypes(2), some_prototypes(3, 2 * F)]
    spaces = [some_features(4), 30.0 + 7.0 * some_features(5, 2 * F)]
    relative = []
    for own, space in zip(experts, spaces, strict=True):
        rows = space.tolist()
        middle = [sum(row[f] for row in rows) / N for f in range(len(rows[0]))]
        spread = sum((a - b) ** 2 for row in rows for a, b in zip(row, middle, strict=True)) / N
        relative.append([[brute_distance(own, row, c) / spread for c in range(C)] for row in rows])
    unit = sum(min(min(expert[n]) for expert in relative) for n in range(N)) / N
    distances = [own.distances(space) for own, space in zip(experts, spaces, strict=True)]
    found = in_common_units(distances, spaces)
    torch.testing.assert_close(found, torch.tensor(relative) / unit, rtol=1e-3, atol=1e-4)
    assert float(found.amin(dim=(0, 2)).mean()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_units_are_numbers_whatever_the_scale(scale: float) -> None:
    space = scale * some_features()
    own = some_prototypes()
    shrunk = Known(own.label_counts, scale * own.points)
    found = in_common_units([shrunk.distances(space)], [space])
    assert not bool(found.isnan().any())


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e6])
def test_an_expert_does_not_come_nearer_by_a_space_of_another_scale(scale: float) -> None:
    known, spaces = [some_prototypes(2), some_prototypes(3)], [some_features(4), some_features(5)]
    plain = in_common_units([own.distances(space) for own, space in zip(known, spaces, strict=True)], spaces)
    scaled = [known[0], Known(known[1].label_counts, scale * known[1].points)]
    others = [spaces[0], scale * spaces[1]]
    found = in_common_units([own.distances(space) for own, space in zip(scaled, others, strict=True)], others)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 1e-25, 1.0, 1e6])
def test_an_expert_in_whose_space_all_samples_fall_together_is_near_to_none(constant: float) -> None:
    """Its clients may say that just there their prototypes lie."""
    known, spaces = some_prototypes(2), [some_features(4), torch.full((N, F), constant)]
    there = Known(known.label_counts, torch.full_like(known.points, constant))
    both = in_common_units([known.distances(spaces[0]), there.distances(spaces[1])], spaces)
    assert bool(both[1].isinf().all())
    torch.testing.assert_close(both[0], in_common_units([known.distances(spaces[0])], spaces[:1])[0])


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_where_no_space_tells_samples_apart_distances_are_numbers(constant: float) -> None:
    space = torch.full((N, F), constant)
    far = Known(torch.ones(1, C), torch.full((1, C, F), 1e6))
    assert bool(in_common_units([far.distances(space)], [space]).isfinite().all())


def test_an_expert_without_prototypes_takes_nothing_from_the_others() -> None:
    known, space = some_prototypes(2), some_features(4)
    without = Known(torch.zeros_like(known.label_counts), known.points)
    flat = torch.ones(N, F)
    alone = in_common_units([known.distances(space)], [space])[0]
    found = in_common_units([own.distances(space) for own in (known, without)], [space, space])
    torch.testing.assert_close(found[0], alone)
    nothing = in_common_units([known.distances(flat), without.distances(space)], [flat, space])
    assert not bool(nothing.isnan().any())


def test_with_one_client_that_has_all_classes_the_vote_is_the_nearest_class_mean() -> None:
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(60, F, generator=g), torch.arange(60) % C
    x = x + y.unsqueeze(1)
    means = torch.stack([x[y == c].mean(dim=0) for c in range(C)])
    prototypes = Known(torch.full((1, C), 15.0), means.unsqueeze(0))
    vote = prototype_vote(in_common_units([prototypes.distances(x)], [x]))
    expected = NearestCentroid().fit(x.numpy(), y.numpy()).predict(x.numpy())
    assert vote.argmax(dim=1).tolist() == expected.tolist()


def test_the_vote_of_several_experts_is_that_of_the_nearest_and_stays_finite() -> None:
    """Class 3 has no prototype anywhere: it is as far as the farthest, so the vote remains a number."""
    distances = torch.tensor(
        [[[1.0, 4.0, torch.inf, torch.inf]], [[2.0, 3.0, 5.0, torch.inf]]],
    )
    assert prototype_vote(distances).tolist() == [[-1.0, -3.0, -5.0, -5.0]]


def test_pooled_counts_are_the_sum() -> None:
    assert sum_counts(some_prototypes().told).tolist() == [8.0, 3.0, 14.0, 0.0]


def test_a_prototype_far_from_what_the_others_call_so_does_not_count() -> None:
    """Client 4 calls class 0 what the others call class 1, and is right about class 2; only two know class 3."""
    g = torch.Generator().manual_seed(3)
    centres = torch.randn(C, F, generator=g)
    points = centres + 0.05 * torch.randn(5, C, F, generator=g)
    points[4, 0], points[4, 3] = centres[1], -centres[3]
    counts = torch.ones(5, C)
    counts[:3, 3] = 0.0
    before = counts.clone()
    believed = torch.stack(believed_counts(list(counts), list(points), 3.0))
    assert (counts - believed).nonzero().tolist() == [[4, 0]]
    for label in range(3):  # by hand
        own = points[:, label].numpy()
        distances = np.linalg.norm(own - np.median(own, axis=0), axis=1)
        assert (believed[:, label] == 0).tolist() == (distances > 3.0 * np.median(distances)).tolist()
    assert torch.equal(counts, before)


def clients_of(x: torch.Tensor, y: torch.Tensor, clients: int) -> Known:
    """What clients tell that share the examples among them."""
    parts = [(x[i::clients], y[i::clients]) for i in range(clients)]
    counts = torch.stack([torch.bincount(labels, minlength=C).float() for _, labels in parts])
    means = [torch.stack([own[labels == c].mean(dim=0) for c in range(C)]) for own, labels in parts]
    return Known(counts, torch.stack(means))


def some_classes(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % C
    return torch.randn(C, F, generator=torch.Generator().manual_seed(9))[y] + torch.randn(samples, F, generator=g), y


def test_samples_like_the_clients_own_are_covered_wholly() -> None:
    known = clients_of(*some_classes(400, seed=0), clients=5)
    for seed in range(1, 6):
        assert coverage(some_classes(200, seed)[0], known.label_counts, known.points) == 1.0


def test_coverage_is_the_variance_of_the_samples_over_that_of_the_class_means() -> None:
    x, y = some_classes(400, seed=0)
    known = clients_of(x, y, clients=5).pooled()
    means = [x[y == c].mean(dim=0) for c in y.tolist()]
    between = sum(float((own - x.mean(dim=0)).square().sum()) for own in means) / len(means)
    samples = 0.2 * some_features() + 3.0
    within = sum(float((own - samples.mean(dim=0)).square().sum()) for own in samples) / N
    assert coverage(samples, *known) == pytest.approx(within / between, rel=1e-4)
    assert 0.0 < coverage(samples, *known) < 0.2


def test_samples_that_are_all_alike_cover_nothing_and_one_class_asks_for_nothing() -> None:
    known = clients_of(*some_classes(40, seed=0), clients=5)
    assert coverage(torch.ones(N, F), *known.pooled()) == 0.0
    one_class = Known(torch.tensor([[4.0, 0.0, 0.0, 0.0]]), torch.randn(1, C, F))
    assert coverage(some_features(), one_class.label_counts, one_class.points) == 1.0
