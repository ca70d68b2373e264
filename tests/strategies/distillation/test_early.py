"""What clients told of early features: who is asked, what is remembered, and the discriminant of it."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tests_support import numbered_classes
from torch import Tensor

from disue.covariance import from_triangle, triangle
from disue.signature import Signature
from disue.tasks import ImageClassification
from strategies.aggregation.caps import Caps
from strategies.distillation.early import ENOUGH, LARGEST_SHARE, MOST_ASKED, EarlyFeatures, EarlyStatistics
from strategies.distillation.server import Server
from strategies.teams import Team
from strategies.updates import ClientUpdate

STRATA, FEATURES, CAPS = 3, 4, Caps(max_weight=10.0)


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


def heard(known: EarlyStatistics, told: Mapping[str, Signature], names: Collection[str] = CLUSTERS) -> EarlyStatistics:
    return known.with_told(told, {name: f"of {name}" for name in told}, names, CAPS)


def test_who_told_nothing_yet_or_has_other_data_is_asked() -> None:
    known = heard(EarlyStatistics(), {"client-0": told_of(*DATA["client-0"])})
    same = {"client-0": "of client-0", "client-1": "of client-1"}
    assert known.to_ask(same, FEATURES) == (["client-1"], [])
    assert known.to_ask(same | {"client-0": "other"}, FEATURES) == (["client-1"], ["client-0"])
    assert known.to_ask(same | {"client-0": "other"}, 0) == ([], ["client-0", "client-1"])
    tried = replace(known, tried=("client-1",))
    assert tried.to_ask({"client-1": None, "client-2": None}, FEATURES)[0] == ["client-2", "client-1"], "new ones first"
    assert known.without_changed(same).told.keys() == {"client-0"}
    assert not known.without_changed({"client-0": "other"}).told, "what it told of other data is forgotten"


def test_a_covariance_is_asked_for_until_it_is_of_enough_examples() -> None:
    known = EarlyStatistics()
    asked = []
    for name, (x, y) in DATA.items():
        asked.append(bool(known.to_ask({name: None}, FEATURES)[0]))
        known = heard(known, {name: told_of(x, y)})
    counted = LARGEST_SHARE * ENOUGH * FEATURES  # of 40
    assert asked == [i * counted < ENOUGH * FEATURES for i in range(6)] == [True] * 5 + [False]


def test_of_clients_that_are_no_more_nothing_is_kept() -> None:
    known = heard(EarlyStatistics(), {name: told_of(*DATA[name]) for name in CLUSTERS})
    assert heard(known, {}, {"client-2"}).told.keys() == {"client-2"}
    assert not heard(known, {"client-9": told_of(*DATA["client-0"])}, {}).told
    assert all(own.covariance is None for own in known.told.values())


@pytest.mark.parametrize("at_once", [True, False])
def test_the_discriminant_is_that_of_all_examples_of_the_pairs_of_cluster_and_stratum(at_once: bool) -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    known = EarlyStatistics()
    for some in [told] if at_once else [{name: own} for name, own in told.items()]:
        known = heard(known, some)
    found = known.discriminant(TEAMS, CLUSTERS, CAPS, 0.0)[1]
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


def test_without_a_covariance_or_a_word_of_half_of_the_clusters_there_is_none() -> None:
    means = {name: told_of(*own, covariance=False) for name, own in DATA.items()}
    assert heard(EarlyStatistics(), means).discriminant(TEAMS, CLUSTERS, CAPS, 0.0) == (TEAMS, None)
    of_one = heard(EarlyStatistics(), {name: told_of(*DATA[name]) for name in ("client-0", "client-2", "client-4")})
    assert of_one.discriminant(TEAMS, CLUSTERS, CAPS, 0.0) == (TEAMS, None)
    assert of_one.discriminant(TEAMS[:1], CLUSTERS, CAPS, 0.0)[1] is not None


def test_a_cluster_of_which_nothing_is_known_does_not_take_the_discriminant_from_the_others() -> None:
    clusters = CLUSTERS | {"client-5": 2}
    teams = [*TEAMS, Team(2, "mlp")]
    told = {name: told_of(*own) for name, own in DATA.items() if name != "client-5"}
    known, found = heard(EarlyStatistics(), told).discriminant(teams, clusters, CAPS, 0.0)
    assert known == TEAMS
    assert found is not None
    assert found.means.shape[0] == 2


def test_whoever_differs_in_kind_is_believed_beside_its_own_cluster() -> None:
    """With a limit a prototype that lies far from the others of its class does not count, in the same cluster."""
    told = {name: told_of(*own) for name, own in DATA.items()}
    apart = {name: replace(own, prototypes=own.prototypes + 100.0 * CLUSTERS[name]) for name, own in told.items()}
    known, found = heard(EarlyStatistics(), apart).discriminant(TEAMS, CLUSTERS, CAPS, 10.0)
    assert known == TEAMS
    assert found is not None
    assert found.counts.sum() == sum(float(own.label_counts.sum()) for own in told.values())
    one = apart | {"client-5": replace(apart["client-5"], prototypes=apart["client-5"].prototypes - 100.0)}
    _, found = heard(EarlyStatistics(), one).discriminant(TEAMS, CLUSTERS, CAPS, 10.0)
    assert found is not None
    assert found.counts[1].sum() == sum(float(told[name].label_counts.sum()) for name in ("client-1", "client-3"))


def test_the_architectures_of_a_cluster_count_together_for_as_much_as_one_would() -> None:
    known = heard(EarlyStatistics(), {name: told_of(*own) for name, own in DATA.items()})
    _, one = known.discriminant(TEAMS, CLUSTERS, CAPS, 0.0)
    _, two = known.discriminant([Team(0, "cnn"), *TEAMS], CLUSTERS, CAPS, 0.0)
    assert one is not None
    assert two is not None
    x = torch.cat([own for own, _ in DATA.values()])
    expected, found = one.log_densities(x), two.log_densities(x)
    torch.testing.assert_close(found[:2].logsumexp(dim=0), expected[0], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found[2], expected[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("when", ["with the others", "first", "last"])
def test_one_client_cannot_stretch_the_units(when: str) -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    honest = heard(EarlyStatistics(), told)
    covariance = told["client-0"].covariance
    assert covariance is not None
    liar = {"client-0": replace(told.pop("client-0"), covariance=1e9 * covariance)}
    lied = EarlyStatistics()
    for some in {"with the others": [liar | told], "first": [liar, told], "last": [told, liar]}[when]:
        lied = heard(lied, some)
    assert honest.within is not None
    assert lied.within is not None
    assert lied.traces.keys() == honest.traces.keys()
    assert float(lied.within.trace()) <= 2.0 * float(honest.within.trace())


def test_one_client_cannot_stand_for_nearly_all_examples() -> None:
    """Not in the covariance, nor in how many examples that is of, nor in the means of its cluster."""
    told = {name: told_of(*own) for name, own in DATA.items()}
    boast = replace(told["client-0"], label_counts=torch.full((STRATA,), 1e11))
    known = heard(EarlyStatistics(), told | {"client-0": boast})
    assert known.examples == pytest.approx(6 * LARGEST_SHARE * ENOUGH * FEATURES)
    alone = heard(EarlyStatistics(), {"client-0": boast})
    assert (alone.examples, alone.within) == (0.0, None), "nothing counts that no others bound"
    assert alone.to_ask({"client-1": None}, FEATURES) == (["client-1"], []), "others are still asked"
    far = replace(boast, prototypes=boast.prototypes + 1.0)
    lied = heard(EarlyStatistics(), told | {"client-0": far}).discriminant(TEAMS, CLUSTERS, CAPS, 0.0)[1]
    assert lied is not None
    assert (lied.means[0] - far.prototypes).norm(dim=1).min() > 0.1, "the cluster's means are not the liar's"


def test_a_client_that_waits_and_has_other_data_is_asked_again_and_stops_nobody() -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    waiting = heard(EarlyStatistics(), {"client-0": told["client-0"]})
    silent = waiting.without_changed({"client-0": "other"})
    gone = heard(waiting, {}, set(CLUSTERS) - {"client-0"})
    for known in (silent, gone):
        assert (known.told, known.waiting, known.traces) == ({}, {}, {})
        assert known.to_ask({"client-0": "other"}, FEATURES) == (["client-0"], [])
    rest = heard(silent, {name: told[name] for name in ("client-1", "client-2", "client-3")})
    assert rest.within is not None
    assert rest.traces.keys() == {"client-1", "client-2", "client-3"}


def test_nobody_is_said_to_be_bounded_whose_covariance_is_in_the_mean_as_it_was_told(messages: list[str]) -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}

    def sized(name: str, trace: float) -> Signature:
        own = told[name].covariance
        assert own is not None
        return replace(told[name], covariance=own * trace / float(from_triangle(own).trace()))

    caps = Caps(max_weight=10.0)
    first = {f"client-{i}": sized(f"client-{i}", trace) for i, trace in enumerate((0.1, 0.1, 0.19))}
    known = EarlyStatistics().with_told(first, dict.fromkeys(first), CLUSTERS, caps)
    later = {name: sized(name, 0.05) for name in ("client-3", "client-4", "client-5")}
    known.with_told(later, dict.fromkeys(later), CLUSTERS, caps)
    assert messages == []
    liar = {"client-5": sized("client-5", 0.9)}
    known.with_told(liar, dict.fromkeys(liar), CLUSTERS, caps)
    assert messages == ["client-5 says covariance of 0.9; it counts as 0.2, bounded by the other clients'"]


def test_clusters_count_and_not_their_architectures_where_few_told() -> None:
    known = heard(EarlyStatistics(), {name: told_of(*DATA[name]) for name in ("client-0", "client-2", "client-4")})
    teams = [Team(0, "cnn"), *TEAMS]
    assert known.discriminant(teams, CLUSTERS, CAPS, 0.0) == (teams, None)


def test_who_tells_again_is_not_in_the_covariance_twice() -> None:
    told = {name: told_of(*own) for name, own in DATA.items()}
    known = heard(EarlyStatistics(), told)
    other = replace(told["client-0"], covariance=torch.zeros(FEATURES * (FEATURES + 1) // 2))
    again = known.with_told({"client-0": other}, {"client-0": "new"}, CLUSTERS, CAPS)
    assert again.within is known.within
    assert again.examples == known.examples
    assert again.digests["client-0"] == "new"


@pytest.mark.parametrize(("classes", "number"), [(10, 128), (30, 85), (41, 64), (100, 64)])
def test_with_many_classes_there_are_as_many_as_a_prototype_has(classes: int, number: int) -> None:
    server = Server(numbered_classes(classes), "mlp", torch.device("cpu"), 0)
    assert EarlyFeatures.of(server, 512).number == number
    assert EarlyFeatures.of(server, 16).number == 16


def test_clients_are_asked_once_and_those_with_other_data_again() -> None:
    asked: list[tuple[list[str], bool]] = []

    def early(names: Collection[str], shape: tuple[int, int], covariance: bool) -> dict[str, Signature]:
        asked.append((list(names), covariance))
        assert shape == (10, 128)
        signature = Signature(torch.ones(10), torch.zeros(10, 128), triangle(torch.eye(128)) if covariance else None)
        return {name: signature for name in names if name != "client-3"}

    server = Server(ImageClassification(tuple("0123456789"), (1, 8, 8), (0.0,), (1.0,)), "mlp", torch.device("cpu"), 0)
    features, names = EarlyFeatures.of(server, 512), [f"client-{i}" for i in range(40)]
    clusters = dict.fromkeys(names, 0)
    state = server.initial("mlp")
    updates = [ClientUpdate(name, state, state, 10, digest=f"of {name}") for name in names]
    known = features.updated(EarlyStatistics(), updates, clusters, CAPS, early)
    changed = [replace(own, digest="other") if own.name == "client-7" else own for own in updates]
    known = features.updated(known, changed, clusters, CAPS, early)
    assert asked == [
        (names[:MOST_ASKED], True),
        (names[MOST_ASKED:], False),
        ([*names[MOST_ASKED:], "client-3"], True),  # 310 of the 1280 examples that are enough are there
        (["client-7"], False),
    ]
    assert known.told.keys() == {*names} - {"client-3"}
    assert features.updated(known, [own for own in changed if own.name != "client-3"], clusters, CAPS, early) == known
    assert EarlyFeatures.of(server, 0).updated(EarlyStatistics(), updates, clusters, CAPS, early) == EarlyStatistics()
