"""FedRep: a body that all clients share, and a head for each that is trained first and stays with it.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021, algorithm 1.
Published: ten epochs for the head, and then one or five for the body, which here are ``local-epochs``.
"""

from dataclasses import replace
from typing import Self

from pydantic import Field

from disue.config import Settings
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.methods.base import METHODS
from strategies.methods.declarations import Needs, Supports
from strategies.methods.fedavg import FedAvg
from strategies.methods.parts import Parts


class FedRepSettings(Settings):
    """Method `fedrep`."""

    head_epochs: int = Field(
        10,
        ge=0,
        le=10000,
        description="epochs in which a client of fedrep trains its head, before local-epochs for the body; 0: both "
        "together (FedPer)",
    )


@METHODS.register("fedrep", FedRepSettings)
class FedRep(FedAvg):
    """Federated averaging of the body; a client's own expert has a head that it keeps and never sends.

    The method has no universal model: what stands for it is the shared body under the head that the run began with.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    head_epochs : int (default: 10)
        Of the head, before the body is trained; with 0 both are trained together, as in FedPer (Arivazhagan et al.,
        "Federated Learning with Personalization Layers", 2019).
    """

    supports = Supports(
        sums=True,
        no_universal="The universal model is of no use: it is the clients' shared body under a head that nobody "
        "trained. Every client has a head of its own, which it did not send.",
    )
    needs = Needs(memory="personal-head")

    def __init__(
        self,
        main: str,
        head_epochs: int = 10,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, replace(objective, head_epochs=head_epochs), aggregator)

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        head_epochs = FedRepSettings.of(parts.config).head_epochs
        return cls(parts.main, head_epochs, parts.objective(), parts.aggregator)
