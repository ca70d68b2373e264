"""What clients told, joined: against the plain covariance of all their examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import shrunk_covariance

from disue.covariance import axes_of_strata, covariance_within
from disue.discriminant import SHRINKAGE
from disue.signature import Signature
from strategies.distillation.discriminant import discriminant_of, mean_points, sum_counts

EXPERTS, CLIENTS, STRATA, FEATURES = 3, 4, 3, 5
Examples = tuple[torch.Tensor, torch.Tensor]


def examples_of(sizes: list[int], seed: int) -> Examples:
    """Examples of one client, so many of each class, around means of its own and with a covariance of its own."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    means, root = (torch.randn(rows, FEATURES, generator=g) for rows in (len(sizes), FEATURES))
    return torch.randn(len(y), FEATURES, generator=g) @ root + 3.0 * means[y], y


def told_by(own: Examples, covariance: bool = True, counts: bool = True) -> Signature:
    x, y = own
    found = torch.bincount(y, minlength=STRATA).float()
    means = torch.stack([x[y == c].mean(dim=0) if (y == c).any() else torch.zeros(FEATURES) for c in range(STRATA)])
    return Signature(
        found if counts else (found > 0).float(), means, covariance_within(x, y, means) if covariance else None
    )


def within(groups: list[list[Examples]]) -> NDArray[np.float64]:
    """The covariance of all examples around the means of their cluster and class, shrunk."""
    off = []
    for own in groups:
        x, y = (torch.cat(parts).double().numpy() for parts in zip(*own, strict=True))
        for c in range(STRATA):
            off.append(x[y == c] - x[y == c].mean(axis=0) if (y == c).any() else x[:0])
    rows = np.concatenate(off)
    return shrunk_covariance(rows.T @ rows / len(rows), SHRINKAGE)


@pytest.fixture
def unequal() -> list[list[Examples]]:
    """Clients with other numbers of examples each; the second cluster has none of class 1."""
    sizes = [[[5 + i, 7 * (k != 1), 30 - 7 * i] for i in range(CLIENTS)] for k in range(EXPERTS)]
    return [[examples_of(own, 10 * k + i) for i, own in enumerate(group)] for k, group in enumerate(sizes)]


@pytest.fixture
def equal() -> list[list[Examples]]:
    return [[examples_of([6] * STRATA, 10 * k + i) for i in range(CLIENTS)] for k in range(EXPERTS)]


def test_covariances_of_clients_with_other_means_make_that_of_all_their_examples(unequal) -> None:  # type: ignore[no-untyped-def]
    found = discriminant_of([[told_by(own) for own in group] for group in unequal])
    np.testing.assert_allclose(found.covariance.numpy(), within(unequal), rtol=1e-3, atol=1e-3)
    for k, group in enumerate(unequal):
        x, y = (torch.cat(parts) for parts in zip(*group, strict=True))
        for c in range(STRATA):
            assert int(found.counts[k, c]) == int((y == c).sum())
            if (y == c).any():
                torch.testing.assert_close(found.means[k, c], x[y == c].mean(dim=0), atol=1e-4, rtol=1e-4)
    assert found.counts[1, 1] == 0.0
    assert found.background is None


def test_all_axes_of_each_class_make_the_same_covariance(unequal) -> None:  # type: ignore[no-untyped-def]
    def with_axes(own: Examples) -> Signature:
        known = told_by(own, covariance=False)
        return replace(known, covariance=axes_of_strata(*own, known.prototypes, FEATURES))

    found = discriminant_of([[with_axes(own) for own in group] for group in unequal])
    np.testing.assert_allclose(found.covariance.numpy(), within(unequal), rtol=1e-3, atol=1e-3)


def test_one_sum_tells_what_its_clients_tell(unequal) -> None:  # type: ignore[no-untyped-def]
    """As with secure sums, where the group's examples are described together."""
    together = [[told_by(tuple(map(torch.cat, zip(*group, strict=True))))] for group in unequal]
    apart = [[told_by(own) for own in group] for group in unequal]
    torch.testing.assert_close(
        discriminant_of(together).covariance, discriminant_of(apart).covariance, atol=1e-3, rtol=1e-3
    )


def test_where_label_counts_are_not_told_all_clients_and_classes_count_alike(equal, unequal) -> None:  # type: ignore[no-untyped-def]
    """With equally many examples of each class with each client nothing is lost by that."""
    found = discriminant_of([[told_by(own, counts=False) for own in group] for group in equal])
    np.testing.assert_allclose(found.covariance.numpy(), within(equal), rtol=1e-3, atol=1e-3)
    counted = discriminant_of([[told_by(own) for own in group] for group in equal])
    torch.testing.assert_close(found.means, counted.means)
    blind = discriminant_of([[told_by(own, counts=False) for own in group] for group in unequal])
    for k, c in ((0, 0), (2, 1)):
        means = [own[0][own[1] == c].mean(dim=0) for own in unequal[k]]
        torch.testing.assert_close(blind.means[k, c], torch.stack(means).mean(dim=0), atol=1e-5, rtol=1e-4)


def test_a_client_that_tells_no_covariance_leaves_that_of_the_others(unequal) -> None:  # type: ignore[no-untyped-def]
    told = [[told_by(own) for own in group] for group in unequal]
    silent = [[*told[0], told_by(examples_of([9, 9, 9], 77), covariance=False)], *told[1:]]
    off = silent[0][-1].prototypes - mean_points(silent[0])
    moved = discriminant_of(silent)
    assert moved.counts[0].tolist() == (discriminant_of(told).counts[0] + 9).tolist()
    assert float(off.abs().max()) > 1.0
    rows = sum(float(own.label_counts.sum()) for group in told for own in group)
    expected = 0.0
    for group, signatures in zip(unequal, silent, strict=True):
        middle = mean_points(signatures).double().numpy()
        for x, y in group:
            apart = x.double().numpy() - middle[y.numpy()]
            expected = expected + apart.T @ apart / rows
    np.testing.assert_allclose(moved.covariance.numpy(), shrunk_covariance(expected, SHRINKAGE), rtol=1e-3, atol=1e-3)


def test_where_nobody_tells_it_it_is_what_means_leave_over_of_the_proxy_set(unequal) -> None:  # type: ignore[no-untyped-def]
    """Of a proxy set that is the examples themselves just the same (law of total covariance)."""
    told = [[told_by(own, covariance=False) for own in group] for group in unequal]
    proxy = torch.cat([own[0] for group in unequal for own in group])
    found = discriminant_of(told, proxy)
    np.testing.assert_allclose(found.covariance.numpy(), within(unequal), rtol=1e-3, atol=1e-2)
    assert found.background is not None
    expected = shrunk_covariance(np.cov(proxy.double().numpy().T, bias=True), SHRINKAGE)
    np.testing.assert_allclose(found.background.covariance.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_proxy_set_that_varies_less_than_the_means_leaves_a_covariance_all_the_same(unequal) -> None:  # type: ignore[no-untyped-def]
    told = [[told_by(own, covariance=False) for own in group] for group in unequal]
    found = discriminant_of(told, torch.zeros(9, FEATURES))
    assert bool(found.log_densities(torch.randn(4, FEATURES)).isfinite().all())


def test_with_nothing_to_go_by_all_directions_are_alike(unequal) -> None:  # type: ignore[no-untyped-def]
    found = discriminant_of([[told_by(own, covariance=False) for own in group] for group in unequal])
    torch.testing.assert_close(found.covariance, torch.eye(FEATURES))


def test_counts_and_means_of_clients_add_up() -> None:
    first = Signature(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([[2.0], [0.0], [4.0]]))
    second = Signature(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([[6.0], [0.0], [0.0]]))
    assert sum_counts([first, second]).tolist() == [4.0, 0.0, 4.0]
    assert mean_points([first, second]).tolist() == [[5.0], [0.0], [3.0]]
