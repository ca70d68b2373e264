"""Who has a vote, round by round."""

from strategies.clustering.probation import Probation


def clusters_of(*sizes: int) -> dict[str, int]:
    clusters = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    return {f"client-{i}": cluster for i, cluster in enumerate(clusters)}


class Rounds:
    """Hands on what a probation remembers from round to round."""

    def __init__(self, rounds: int) -> None:
        self.probation = Probation(rounds)
        self.rounds_in: dict[int, int] = {}

    def passed(self, clusters: dict[str, int], sampled: set[int]) -> set[int]:
        passed, self.rounds_in = self.probation.passed(self.rounds_in, clusters, sampled)
        return passed


def test_a_small_cluster_votes_when_it_has_taken_part_often_enough() -> None:
    probation = Rounds(rounds=2)
    clusters = clusters_of(6, 6, 2)  # 14 / 3 on the mean, and half of that is 2.33
    sampled = [{0, 1, 2}, {0, 1}, {2}, {0, 1, 2}]
    assert [2 in probation.passed(clusters, now) for now in sampled] == [False, False, False, True]


def test_a_cluster_that_is_gone_begins_anew() -> None:
    probation = Rounds(rounds=1)
    small, none = clusters_of(6, 1), clusters_of(7)
    assert probation.passed(small, {0, 1}) == {0}
    assert probation.passed(small, {0, 1}) == {0, 1}
    assert probation.passed(none, {0}) == {0}
    assert probation.passed(small, {0, 1}) == {0}


def test_without_rounds_and_among_equals_all_vote() -> None:
    assert Rounds(rounds=0).passed(clusters_of(9, 1), {0}) == {0, 1}
    assert Rounds(rounds=9).passed(clusters_of(2, 2, 1), set()) == {0, 1, 2}
