"""What clients told of early features: who is asked, what is remembered, and the discriminant of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from disue.covariance import triangle
from disue.signature import Signature
from strategies.aggregation.caps import Caps
from strategies.distillation.early import ENOUGH, Early
from strategies.teams import Team

STRATA, FEATURES, CAPS = 3, 4, Caps()


def data_of(client: int, cluster: int, count: int = 40) -> tuple[Tensor, Tensor]:
    """Return features and strata; clusters and strata have means of their own."""
    g = torch.Generator().manual_seed(client)
    y = torch.randint(STRATA, (count,), generator=g)
    means = torch.randn(2, STRATA, FEATURES, generator=torch.Generator().manual_seed(99))
    return means[cluster][y] + 0.5 * torch.randn(count, FEATURES, generator=g), y


def told_of(x: Tensor, y: Tensor, covariance: bool = True) -> Signature:
    counts = torch.bincount(y, minlength=STRATA).float()
    means = torch.stack(
        [x[y == label].mean(dim=0) if counts[label] else torch.zeros(FEATURES) for label in range(STRATA)]
    )
    off = x - means[y]
    return Signature(counts, means, triangle(off.T @ off / len(x)) if covariance else None)


CLUSTERS = {f"client-{i}": i % 2 for i in range(6)}
DATA = {name: data_of(i, cluster) for i, (name, cluster) in enumerate(CLUSTERS.items())}
TEAMS = [Team(0, "mlp"), Team(1, "mlp")]


def test_who_told_nothing_yet_or_has_other_data_is_asked() -> None:
    known = Early().with_told({"client-0": told_of(*DATA["client-0"])}, CLUSTERS, CAPS)
    assert known.lacks(["client-0", "client-1"], ()) == ["client-1"]
    assert known.lacks(["client-0", "client-1"], {"client-0"}) == ["client-0", "client-1"]


def test_a_covariance_is_asked_for_until_it_is_of_enough_examples() -> None:
    known = Early()
    asked = []
    for name, (x, y) in DATA.items():
        asked.append(known.lacks_covariance(FEATURES))
        known = known.with_told({name: told_of(x, y)}, CLUSTERS, CAPS)
    assert asked == [i * 40 < ENOUGH * FEATURES for i in range(6)]


def test_of_clients_that_are_no_more_nothing_is_kept() -> None:
    known = Early().with_told({name: told_of(*DATA[name]) for name in CLUSTERS}, CLUSTERS, CAPS)
    assert known.with_told({}, {"client-2"}, CAPS).told.keys() == {"client-2"}
    assert not known.with_told({"client-9": told_of(*DATA["client-0"])}, {}, CAPS).told
    assert all(own.covariance is None for own in known.told.values())


@pytest.mark.parametrize("at_once", [True, False])
def test_the_discriminant_is_that_of_all_examples_of_the_pairs_of_cluster_and_stratum(at_once: bool) -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    known = Early()
    for some in [told] if at_once else [{name: own} for name, own in told.items()]:
        known = known.with_told(some, CLUSTERS, CAPS)
    found = known.discriminant(TEAMS, CLUSTERS, CAPS, 0.0)
    assert found is not None
    x = torch.cat([own for own, _ in DATA.values()]).numpy()
    pairs = np.concatenate([y.numpy() + STRATA * CLUSTERS[name] for name, (_, y) in DATA.items()])
    usual = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 6] * 6, store_covariance=True).fit(x, pairs)
    np.testing.assert_allclose(found.means.flatten(end_dim=1).numpy(), usual.means_, atol=1e-5)
    within = np.zeros((FEATURES, FEATURES))
    for pair in range(6):
        off = x[pairs == pair] - x[pairs == pair].mean(axis=0)
        within += off.T @ off / len(x)
    shrunk = 0.9 * within + 0.1 * np.trace(within) / FEATURES * np.eye(FEATURES)
    np.testing.assert_allclose(found.covariance.numpy(), shrunk, atol=1e-5)
    densities = found.log_densities(torch.from_numpy(x)).transpose(0, 1).flatten(start_dim=1)
    agree = float((densities.argmax(dim=1).numpy() == usual.predict(x)).mean())
    assert agree > 0.98  # but for the shrinkage


def test_without_a_covariance_or_without_a_word_of_a_cluster_there_is_none() -> None:
    means = {name: told_of(*own, covariance=False) for name, own in DATA.items()}
    assert Early().with_told(means, CLUSTERS, CAPS).discriminant(TEAMS, CLUSTERS, CAPS, 0.0) is None
    one = Early().with_told({"client-0": told_of(*DATA["client-0"])}, CLUSTERS, CAPS)
    assert one.discriminant(TEAMS, CLUSTERS, CAPS, 0.0) is None
    assert one.discriminant(TEAMS[:1], CLUSTERS, CAPS, 0.0) is not None


def test_one_client_cannot_stretch_the_units() -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    honest = Early().with_told(told, CLUSTERS, CAPS)
    covariance = told["client-0"].covariance
    assert covariance is not None
    lied = Early().with_told(
        told | {"client-0": replace(told["client-0"], covariance=1e9 * covariance)}, CLUSTERS, CAPS
    )
    assert honest.within is not None
    assert lied.within is not None
    assert float(lied.within.trace()) <= 2.0 * float(honest.within.trace())
