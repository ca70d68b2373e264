"""Stable cluster identity: cluster 2 of this round is cluster 2 of the last one."""

import itertools
from collections.abc import Mapping

from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix


def match_clusters(previous: Mapping[str, int], labels: Mapping[str, int]) -> dict[str, int]:
    """Rename new clusters after the old ones that share most clients with them.

    One to one, by the assignment with the largest total overlap (Kuhn 1955); a new cluster that continues
    no old one gets the smallest number that none of the old ones had.

    Parameters
    ----------
    previous : mapping of client to cluster
        The identities so far; clients that are not in it do not count.
    labels : mapping of client to label
        The new clustering, with arbitrary labels.

    Returns
    -------
    dict of client to cluster
        The same clustering as ``labels``, renamed.
    """
    stayed = [name for name in labels if name in previous]
    new, old = (sorted({clusters[name] for name in stayed}) for clusters in (labels, previous))
    overlap = contingency_matrix([labels[name] for name in stayed], [previous[name] for name in stayed])
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    renamed = {new[i]: old[j] for i, j in zip(rows, columns, strict=True) if overlap[i, j] > 0}
    taken = set(previous.values())
    for label in sorted(set(labels.values())):
        if label not in renamed:
            renamed[label] = next(number for number in itertools.count() if number not in taken)
            taken.add(renamed[label])
    return {name: renamed[label] for name, label in labels.items()}
