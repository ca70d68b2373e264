"""CCVR: FedAvg, and a head that is trained again on features drawn from what clients tell of theirs.

Luo et al., "No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data", NeurIPS 2021,
section 4. Clients tell how many examples of each class they have, and the mean and covariance of their features under
the averaged model. The server pools these class by class, draws virtual features of each class from the normal
distribution that they describe, and trains the head of the average on them, from where it is. Its body stays.

Features are drawn and heads trained as in method `disue`, with the same numbers by default. Public code for CIFAR-10
(github.com/smduan/Fed-CCVR) draws 2,000 independent features of each class, and takes ten epochs of SGD at 0.001 with
momentum 0.9 and batches of 64. The paper calibrates once, after the last round. Here
the model of every round is calibrated, to be looked at; training goes on from the plain average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Self

from flwr.common.logger import log
from pydantic import Field

from disue.errors import ConfigError
from disue.models import State, num_features
from disue.objective import PLAIN, LocalObjective
from disue.seeding import torch_rng
from disue.signature import Signature
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import Aggregator
from strategies.distillation.belief import believed, with_capped_counts
from strategies.distillation.calibration import CalibrationSettings, Calibrator
from strategies.distillation.prototypes import PrototypeSettings
from strategies.distillation.server import Server
from strategies.methods.base import METHODS, Method, MethodState, Step
from strategies.methods.declarations import Supports
from strategies.methods.parts import Parts
from strategies.methods.settings import StrategyConfig
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.updates import Contribution

MOST_MODEL_FEATURES = 1024
"""Of more, a covariance for each class is too large to send: of so many it has 2 MB."""


class CCVRSettings(PrototypeSettings, CalibrationSettings):
    """Method `ccvr`."""

    calibration_share: float = Field(
        1.0,
        ge=1e-6,
        le=1.0,
        description="share of the clients that are asked, after each round, for what ccvr draws from",
    )


@stored
@dataclass(frozen=True)
class CCVRState(MethodState):
    """With the plain ``average``, from which clients start."""

    average: State = field(default_factory=dict)


@METHODS.register("ccvr", CCVRSettings)
class CCVR(Method[CCVRState]):
    """Federated averaging; the universal model, which is every client's expert, is the average with a calibrated head.

    Parameters
    ----------
    server : Server
        Task, model and seed.
    settings : CCVRSettings
    caps : Caps
        Bounds what clients say by each other.
    objective, aggregator
        See `Method`.
    """

    state_type = CCVRState
    supports = Supports(uncovered="how a client's features vary")

    def __init__(
        self,
        server: Server,
        settings: CCVRSettings,
        caps: Caps | None = None,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(server.main, objective, aggregator)
        self.server = server
        self.settings = settings
        self.caps = caps or Caps()

    @classmethod
    def check(cls, config: StrategyConfig) -> None:
        """Refuse a run in which nobody knows how many examples a covariance is of."""
        if not config.share_label_counts:
            raise ConfigError("share-label-counts: got False; method 'ccvr' pools covariances by them, use true")

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it.

        Raises
        ------
        ConfigError
            If the task has no classes, or the model too many features.
        """
        server = parts.server
        if not server.task.scores_strata:
            raise ConfigError("method: got 'ccvr'; it draws features of classes and this task has none, use fedavg")
        size = num_features(server.initial(server.main))
        if size > MOST_MODEL_FEATURES:
            raise ConfigError(
                f"model: got '{server.main}', with {size} features; ccvr asks for a covariance of them for each class, "
                f"use a model with at most {MOST_MODEL_FEATURES}"
            )
        settings = CCVRSettings.of(parts.config)
        return cls(server, settings, parts.caps, parts.objective(), parts.aggregator)

    def begin(self, initial: State) -> CCVRState:
        """Return the state before the first round."""
        return replace(super().begin(initial), average=initial)

    def start(self, state: CCVRState, client: Client) -> State:
        """Return the plain average."""
        return state.average

    def step(self, state: CCVRState, updates: Sequence[Contribution], round: Round) -> Step[CCVRState]:
        """Average the clients' models, and calibrate the head; it stays as it is where no client tells anything."""
        average = calibrated = self.aggregator(updates)
        if self.settings.calibration_epochs:
            models, strata = {self.main: average}, self.server.task.num_strata
            told = self._believed(round.features(models, strata, self.settings.calibration_share))
            if told:
                with round.timed("distillation"):
                    generator = torch_rng(self.server.seed, "virtual features", round.number)
                    (calibrated,) = Calibrator(self.settings).calibrated([average], [told], [generator])
            else:
                log(WARNING, "round %s: no client told anything of its features; the head stays as it is", round.number)
        return Step(replace(state, universals={self.main: calibrated}, average=average), {self.main: average})

    def _believed(self, told: Mapping[str, Signature]) -> list[Signature]:
        """Return what clients told, as far as it is `believed`; none counts for much more than the others."""
        return list(with_capped_counts(believed(told, self.caps, self.settings.prototype_limit), self.caps).values())
