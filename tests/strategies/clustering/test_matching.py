import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.clustering.matching import match_clusters

assignments = st.dictionaries(st.sampled_from([f"c{i}" for i in range(12)]), st.integers(0, 4), min_size=1)


def partition(labels: dict[str, int]) -> set[frozenset[str]]:
    return {frozenset(n for n in labels if labels[n] == k) for k in set(labels.values())}


def overlap(previous: dict[str, int], labels: dict[str, int]) -> int:
    return sum(previous.get(name) == label for name, label in labels.items())


def test_relabelled_clusters_get_their_names_back() -> None:
    previous = {"a": 0, "b": 0, "c": 1, "d": 2, "e": 2}
    swapped = {name: {0: 2, 1: 0, 2: 1}[label] for name, label in previous.items()}
    assert match_clusters(previous, swapped) == previous


def test_one_client_that_moves_moves_alone() -> None:
    previous = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1}
    assert match_clusters(previous, {"a": 5, "b": 5, "c": 3, "d": 3, "e": 3}) == {
        "a": 0,
        "b": 0,
        "c": 1,
        "d": 1,
        "e": 1,
    }


def test_a_split_keeps_the_name_for_the_larger_part_and_takes_a_number_that_was_free() -> None:
    previous = {"a": 1, "b": 1, "c": 1, "d": 0}
    assert match_clusters(previous, {"a": 0, "b": 0, "c": 1, "d": 2}) == {"a": 1, "b": 1, "c": 2, "d": 0}


def test_a_number_that_just_ended_is_not_given_to_another_cluster() -> None:
    previous = {"a": 0, "b": 0, "c": 1, "d": 2, "e": 2}
    assert match_clusters(previous, {"a": 0, "b": 1, "c": 2, "d": 2, "e": 2}) == {
        "a": 0,
        "b": 3,
        "c": 2,
        "d": 2,
        "e": 2,
    }


def test_without_a_past_numbers_start_at_zero() -> None:
    assert match_clusters({}, {"a": 7, "b": 3}) == {"a": 1, "b": 0}


@given(assignments, assignments)
def test_the_partition_is_kept_and_names_are_one_to_one(previous: dict[str, int], labels: dict[str, int]) -> None:
    matched = match_clusters(previous, labels)
    assert partition(matched) == partition(labels)
    assert len(set(matched.values())) == len(set(labels.values()))


@given(assignments, assignments)
@settings(max_examples=40)
def test_no_renaming_keeps_more_clients(previous: dict[str, int], labels: dict[str, int]) -> None:
    found = overlap(previous, match_clusters(previous, labels))
    new = sorted(set(labels.values()))
    for names in itertools.permutations(range(5), len(new)):
        renamed = dict(zip(new, names, strict=True))
        assert overlap(previous, {n: renamed[k] for n, k in labels.items()}) <= found


def test_thirty_clusters_take_no_time() -> None:
    """The assignment problem, not all permutations of clusters (a known bug of public code)."""
    previous = {f"client-{i}": i % 30 for i in range(300)}
    labels = {name: (7 * number + 3) % 30 for name, number in previous.items()}
    started = time.perf_counter()
    assert match_clusters(previous, labels) == previous
    assert time.perf_counter() - started < 1.0
