"""What every method may be told of a run: the sections of the parts that methods are made of."""

from typing import ClassVar

from pydantic import Field, field_validator

from disue.config import ClientConfig, Settings
from disue.objective import LocalLoss
from strategies.aggregation.caps import CapSettings
from strategies.aggregation.limits import LimitSettings
from strategies.aggregation.robust import AggregatorSettings
from strategies.aggregation.store import StoreSettings
from strategies.clustering.estimators import ClustererSettings
from strategies.clustering.similarity import SignatureSettings
from strategies.distillation.distiller import DistillerSettings
from strategies.distillation.generator import GeneratorSettings
from strategies.distillation.proxy import ProxySettings
from strategies.distillation.teachers import TeacherSettings
from strategies.rounds.secure_sums import SecureSumSettings
from strategies.rounds.stats import ParticipationSettings


class MethodSettings(Settings):
    """The method."""

    shared: ClassVar[bool] = True

    method: str = Field("disue", description="strategy")


class ObjectiveSettings(Settings):
    """What clients minimise."""

    prox_mu: float = Field(
        -1.0, ge=-1.0, le=1e6, description="weight of the proximal term; -1: 0.01 for fedprox, else 0"
    )
    local_loss: LocalLoss = Field(
        "cross-entropy", description="balanced: logits are shifted by the client's log label shares (FedLC)"
    )

    @field_validator("prox_mu")
    @classmethod
    def _weight_or_left_open(cls, value: float) -> float:
        if value < 0.0 and value != -1.0:
            raise ValueError("use 0 or more, or -1 for the method's own")
        return value


class StrategyConfig(
    MethodSettings,
    ClientConfig,
    ObjectiveSettings,
    ParticipationSettings,
    ClustererSettings,
    SignatureSettings,
    AggregatorSettings,
    LimitSettings,
    CapSettings,
    StoreSettings,
    ProxySettings,
    TeacherSettings,
    DistillerSettings,
    GeneratorSettings,
    SecureSumSettings,
    Settings,
):
    """The keys that do not belong to one method alone."""
