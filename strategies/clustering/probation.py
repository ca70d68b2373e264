"""Clusters that have no vote yet."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import ClassVar


class Probation:
    """A small cluster has no vote until it has taken part in some earlier rounds.

    Small is a cluster with less than half as many clients as the clusters have on the mean; so there is always one that
    is not. A few clients who agree on data that nobody else has can make such a cluster at once, and whether they are
    malicious or new is not to be seen.

    Parameters
    ----------
    rounds : int
        In how many it must have been sampled; 0: none.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_rounds",)

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._rounds: dict[int, int] = {}

    def passed(self, clusters: Mapping[str, int], sampled: Collection[int]) -> set[int]:
        """Return the clusters that may vote; to be asked once in a round.

        Parameters
        ----------
        clusters : mapping of client to cluster
        sampled : collection of int
            The clusters that took part in this round.
        """
        sizes = Counter(clusters.values())
        before = {cluster: self._rounds.get(cluster, 0) for cluster in sizes}
        self._rounds = {cluster: rounds + (cluster in sampled) for cluster, rounds in before.items()}
        usual = sizes.total() / len(sizes)
        return {cluster for cluster, size in sizes.items() if 2 * size >= usual or before[cluster] >= self.rounds}
