"""PACFL: clients whose data span similar subspaces train together.

Vahidian et al., "Efficient Distribution Similarity Identification in Clustered Federated Learning via Principal
Angles Between Client Data Subspaces", AAAI 2023, algorithm 1. Published settings: the 3 to 5 leading singular vectors
of a client's inputs, hierarchical clustering of the principal angles. Their threshold depends on the data; here the
number of clusters is chosen as everywhere else. Their distances are the smallest angle (eq. 2) or a sum of angles
(eq. 3); here it is the chordal distance, the root of the sum of squared sines.
"""

from typing import Self

from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import BySignature
from strategies.clustering.estimators import Clusterer
from strategies.clustering.similarity import SIGNATURES
from strategies.methods.base import METHODS
from strategies.methods.clustered import AssignedMethod
from strategies.methods.declarations import Supports
from strategies.methods.parts import Parts


@METHODS.register("pacfl")
class PACFL(AssignedMethod):
    """Clusters by principal angles between the subspaces that the clients' inputs span, before any training.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    clusterer : Clusterer
        The hierarchical clusterer.
    random_state : int (default: 0)
        See `BySignature`.
    """

    supports = Supports(uncovered="the subspace of a client's inputs")

    def __init__(
        self,
        main: str,
        clusterer: Clusterer,
        random_state: int = 0,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        assigner = BySignature("subspace", SIGNATURES["subspace"], clusterer, random_state=random_state)
        super().__init__(main, assigner, objective, aggregator)

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.main, parts.agglomerative(), parts.random_state, parts.objective(), parts.aggregator)
