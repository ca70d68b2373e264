"""Clusters that have no vote yet."""

from collections import Counter
from collections.abc import Collection, Mapping


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

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def passed(
        self, before: Mapping[int, int], clusters: Mapping[str, int], sampled: Collection[int]
    ) -> tuple[set[int], dict[int, int]]:
        """Return the clusters that may vote, and in how many rounds each took part by now.

        Parameters
        ----------
        before : mapping of cluster to int
            In how many earlier rounds each took part, as it was returned then.
        clusters : mapping of client to cluster
        sampled : collection of int
            The clusters that took part in this round.
        """
        sizes = Counter(clusters.values())
        taken = {cluster: before.get(cluster, 0) for cluster in sizes}
        usual = sizes.total() / len(sizes)
        passed = {cluster for cluster, size in sizes.items() if 2 * size >= usual or taken[cluster] >= self.rounds}
        return passed, {cluster: rounds + (cluster in sampled) for cluster, rounds in taken.items()}
