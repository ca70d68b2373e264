"""More clients than can all be compared with each other: some of them, the landmarks, are compared with everybody.

The landmarks are clustered as few clients are. Everybody else joins the cluster whose centre is nearest, as newcomers
do: the space that the landmarks span, onto which others are projected, holds the centres, so nothing of that is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strategies.clustering.estimators import Clusterer, nearest_centres
from strategies.clustering.similarity import SignatureKind, embed

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_COMPARED = 500
"""Clients of whom every pair is compared; of more, so many are landmarks."""
CHECKED = 100
"""Clients whose pairs tell how good the projection is."""
MOST_ERROR = 0.1
"""Projection error above which a warning is due: that of a random projection to a hundred dimensions."""
LEAST_AGREEMENT = 0.9
"""Share of landmarks below which a warning is due: see `cluster_landmarks`."""


@dataclass(frozen=True)
class Embedding:
    """Clients as points.

    Attributes
    ----------
    points : (clients, dimensions) array
        Their inner products are those of the signatures, of two clients that are no landmarks nearly.
    landmarks : (landmarks,) array or None
        Their rows; None if every pair of clients was compared.
    projection_error : float
        Root mean square error of the inner products, over the pairs of some clients that are no landmarks.
    """

    points: FloatArray
    landmarks: IntArray | None = None
    projection_error: float = 0.0


def embedding(
    kind: SignatureKind, vectors: Sequence[Tensor], random_state: int, most_compared: int = MOST_COMPARED
) -> Embedding:
    """Return the clients with these signatures as points: exact up to ``most_compared``, else by as many landmarks.

    The Nyström method (Williams & Seeger 2001) with landmarks drawn at random: a client's point is its projection onto
    the space that the landmarks' signatures span.
    """
    if len(vectors) <= most_compared:
        return Embedding(embed(kind.gram(vectors)))
    order = np.random.default_rng(random_state).permutation(len(vectors))
    landmarks, others = np.sort(order[:most_compared]), order[most_compared:]
    own = [vectors[i] for i in landmarks]
    exact = embed(kind.gram(own))
    project = exact / np.maximum(np.square(exact).sum(axis=0), 1e-300)
    blocks = range(0, len(vectors), most_compared)
    points = np.concatenate([kind.gram(vectors[i : i + most_compared], own).numpy() @ project for i in blocks])
    points[landmarks] = exact
    return Embedding(points, landmarks, _projection_error(kind, vectors, points, others[:CHECKED]))


def _projection_error(kind: SignatureKind, vectors: Sequence[Tensor], points: FloatArray, checked: IntArray) -> float:
    exact = kind.gram([vectors[i] for i in checked]).numpy()
    errors = (points[checked] @ points[checked].T - exact)[np.triu_indices(len(checked), 1)]
    return float(np.linalg.norm(errors) / np.sqrt(max(1, len(errors))))


def cluster_landmarks(clusterer: Clusterer, embedded: Embedding) -> tuple[IntArray, float]:
    """Return each client's label, and the share of landmarks that have the label of the nearest cluster centre.

    The share says whether joining the nearest centre is what the clusterer would have done; 1 without landmarks.
    """
    points, landmarks = embedded.points, embedded.landmarks
    if landmarks is None:
        return clusterer.fit_predict(points), 1.0
    own = clusterer.fit_predict(points[landmarks])
    labels = nearest_centres(points, points[landmarks], own)
    agreement = float(np.mean(labels[landmarks] == own))
    labels[landmarks] = own
    return labels, agreement


def doubts(projection_error: float, agreement: float) -> list[str]:
    """Return what there is to warn of."""
    found = []
    if projection_error > MOST_ERROR:
        found.append(
            f"signatures are projected with an error of {projection_error:.3f} (cosine); {MOST_ERROR} is usual"
        )
    if agreement < LEAST_AGREEMENT:
        found.append(f"of the landmarks {agreement:.0%} are nearest to the centre of their own cluster")
    return found
