"""Ditto: FedAvg, and a personal model for every client, held near the shared one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1. Published
weights of the proximal term: 0.1, 1 and 2 among others; 1 here by default.
"""

from dataclasses import replace
from typing import Self

from pydantic import Field

from disue.config import Settings
from disue.objective import PLAIN, LocalObjective
from strategies.aggregation.robust import Aggregator
from strategies.methods.base import METHODS
from strategies.methods.declarations import Needs
from strategies.methods.fedavg import FedAvg
from strategies.methods.parts import Parts


class DittoSettings(Settings):
    """Method `ditto`."""

    ditto_lambda: float = Field(
        1.0, ge=0.0, le=1e6, description="weight of the term that holds a client's personal model near the shared one"
    )


@METHODS.register("ditto", DittoSettings)
class Ditto(FedAvg):
    """Federated averaging; a client's own expert is a model of its own, which it keeps and never sends.

    Parameters
    ----------
    main, objective, aggregator
        See `Method`.
    weight : float (default: 1.0)
        The lambda of lambda/2 ||v - w||^2; with 0 the personal models are trained alone.
    """

    needs = Needs(memory="personal-model")

    def __init__(
        self,
        main: str,
        weight: float = 1.0,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(main, replace(objective, second_mu=weight), aggregator)

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        weight = DittoSettings.of(parts.config).ditto_lambda
        return cls(parts.main, weight, parts.objective(), parts.aggregator)
