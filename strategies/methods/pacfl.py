"""PACFL: clients whose data span similar subspaces train together.

Vahidian et al., "Efficient Distribution Similarity Identification in Clustered Federated Learning via Principal
Angles Between Client Data Subspaces", AAAI 2023, algorithm 1. Published settings: the 3 to 5 leading singular vectors
of a client's inputs, hierarchical clustering of the principal angles. Their threshold depends on the data; here the
number of clusters is chosen as everywhere else. Their distances are the smallest angle (eq. 2) or a sum of angles
(eq. 3); here it is the chordal distance, the root of the sum of squared sines.
"""

from disue.objective import PLAIN, LocalObjective
from strategies.clustering.assignment import BySignature
from strategies.clustering.estimators import Clusterer
from strategies.clustering.similarity import SIGNATURES
from strategies.methods.clustered import GroupedStrategy
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation


class PACFL(GroupedStrategy):
    """Clusters by principal angles between the subspaces that the clients' inputs span, before any training.

    Parameters
    ----------
    roster, participation, objective
        See `FederatedStrategy`.
    clusterer : Clusterer
        The hierarchical clusterer.
    random_state : int (default: 0)
        See `BySignature`.
    """

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        clusterer: Clusterer,
        objective: LocalObjective = PLAIN,
        random_state: int = 0,
    ) -> None:
        grouping = BySignature("subspace", SIGNATURES["subspace"], clusterer, random_state=random_state)
        super().__init__(roster, participation, grouping, objective)
