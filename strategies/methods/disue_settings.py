"""What a run may choose of DisUE."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from strategies.distillation.calibration import CalibrationSettings
from strategies.distillation.prototypes import PrototypeSettings


class DisUESettings(PrototypeSettings, CalibrationSettings):
    """Method `disue`."""

    initialisation: Literal["universal", "expert", "blend", "learned"] = Field(
        "learned",
        description="what a client starts a round from; learned: a blend whose share is learnt for each cluster",
    )
    blend: float = Field(
        0.5, ge=0.0, le=1.0, description="share of the own expert when initialisation=blend, and at first when learned"
    )
    universal_momentum: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="share of the last round's step of disue's average in the next one (server momentum)",
    )
    universal_mean: bool = Field(
        True,
        description="where a part of the clients is sampled, disue's universal expert is a running mean over rounds; "
        "clients go on from the latest",
    )
    expert_memory: float = Field(
        0.5, ge=0.0, lt=1.0, description="share of the past in disue's experts; 0: the last round's updates alone"
    )
    expert_prior: Literal["cluster", "client"] = Field(
        "client",
        description="label prior with which a client of disue uses its expert: as it was trained, or the client's own "
        "in its place; with local-loss=balanced always the client's own",
    )
    probation_rounds: int = Field(
        0,
        ge=0,
        le=10**6,
        description="rounds in which a cluster of disue with less than half the usual number of clients must have "
        "taken part before it teaches",
    )
    prior_correction: bool = Field(
        True,
        description="take each cluster's label prior out of its expert's logits; with local-loss=balanced none is in",
    )
    prototypes: Literal["client", "cluster"] = Field(
        "client",
        description="class prototypes that samples are compared with: of each client, or the mean of a cluster's; "
        "there is no more than the latter with privacy=secure",
    )
    prototype_weight: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="weight in the vote of what the clients' class prototypes say; the experts have 1 together",
    )
    early_features: int = Field(
        512,
        ge=0,
        le=4096,
        description="most features of an early layer of the initial model by which disue tells samples apart, where "
        "clients may tell of them; 0: it does so by the universal expert's",
    )
    student_share: float = Field(
        0.5,
        ge=1e-6,
        le=1.0,
        description="share of the student in disue's universal expert, where clients do not say which is best; the "
        "rest is the average",
    )
    head_share: float = Field(
        0.75,
        ge=0.0,
        le=1.0,
        description="share of the calibrated head in disue's universal expert; the rest is the head as it was taught",
    )

    @property
    def expert_share(self) -> float:
        """Share of the own expert in what clients start from, as long as none is learnt."""
        return {"universal": 0.0, "expert": 1.0}.get(self.initialisation, self.blend)


@dataclass(frozen=True)
class ClientsTell:
    """What clients may tell of their data, beside updates and prototypes.

    Attributes
    ----------
    comparison : bool
        Some of them, which mixture of student and average fits their data best. If not, that is ``student-share``, and
        the proxy set tells whether the average is kept: it has the same evidence as the teacher.
    covariance : bool
        How their features vary. If not, that is taken from the proxy set.
    early : bool
        What early features are like, each by itself.
    """

    comparison: bool = False
    covariance: bool = True
    early: bool = False
