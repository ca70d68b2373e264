"""The models of clusters over time: fresh where a cluster was sampled, kept otherwise, inherited by a split.

Where clients have different architectures a cluster has an expert of each: those of one are a team.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from strategies.stored import stored
from strategies.updates import Named


@stored
class Team(NamedTuple):
    """The clients of one architecture in one cluster: those whose updates can be averaged."""

    cluster: int
    model: str

    def label(self, main: str) -> str:
        """Return what its expert is called, where ``main`` is the run's own architecture: 0, and 0-mlp beside it."""
        return f"{self.cluster}" if self.model == main else f"{self.cluster}-{self.model}"


T = TypeVar("T")
N = TypeVar("N", bound=Named)
K = TypeVar("K", int, Team)
"""A cluster, or a part of one."""


def teams_of(clusters: Mapping[str, int], models: Mapping[str, str]) -> dict[str, Team]:
    """Return the team of every client in a cluster, given the architectures of (at least) these clients."""
    return {name: Team(cluster, models[name]) for name, cluster in clusters.items()}


def renew(known: Mapping[K, T], fresh: Mapping[K, T], clusters: Mapping[str, K], before: Mapping[str, K]) -> dict[K, T]:
    """Return what belongs to each cluster, or each team, that has a client now.

    Parameters
    ----------
    known : mapping of cluster to anything
        What belonged to the clusters of the last round.
    fresh : mapping of cluster to anything
        What this round made, for the clusters that were sampled.
    clusters, before : mapping of client to cluster
        The assignments of this round and of the last one.

    Returns
    -------
    dict of cluster to anything
        A cluster that is neither fresh nor known gets what the old cluster of most of its clients had; it is
        left out if they had none.
    """
    renewed: dict[K, T] = {}
    for cluster in sorted(set(clusters.values())):
        parents = Counter(before[name] for name in clusters if clusters[name] == cluster and name in before)
        heirs = [parent for parent, _ in parents.most_common() if parent in known]
        if cluster in fresh:
            renewed[cluster] = fresh[cluster]
        elif cluster in known:
            renewed[cluster] = known[cluster]
        elif heirs:
            renewed[cluster] = known[heirs[0]]
    return renewed


def members_of(updates: Sequence[N], clusters: Mapping[str, K]) -> dict[K, list[N]]:
    """Return the round's updates by cluster, or by team, in the order of the cluster numbers."""
    members: dict[K, list[N]] = {}
    for update in updates:
        members.setdefault(clusters[update.name], []).append(update)
    return dict(sorted(members.items()))
