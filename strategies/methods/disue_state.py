"""What DisUE knows between rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from disue.models import State
from strategies.aggregation.steps import RunningMean
from strategies.distillation.early import EarlyStatistics
from strategies.distillation.generator import GeneratorState
from strategies.distillation.knowledge import Knowledge
from strategies.methods.base import MethodState
from strategies.stored import stored
from strategies.teams import Team


@stored
@dataclass(frozen=True)
class DisUEState(MethodState):
    """What DisUE knows after a round. `experts` are running means of ``latest``.

    Attributes
    ----------
    plain : mapping of architecture to State
        The universal experts before their heads were calibrated: clients go on from these.
    means : mapping of architecture to RunningMean
        Of ``plain`` over rounds.
    latest : mapping of Team to State
        The mean of the team's updates in the last round in which it was sampled.
    velocity : mapping of architecture to State
        The step of its average in the last round in which one of its clients was sampled.
    knowledge : Knowledge
        What clients told of their data.
    early : EarlyStatistics
        What they told of early features of them.
    priors : mapping of Team to (classes,) tensor
        Log label shares of the team's clients, in a task that scores classes; where they are not told, as they were
        last estimated.
    expert_shares : mapping of Team to float
        What was learnt of them.
    coverage : float
        Of the round's proxy set, if that is foreign, and else 1: it makes the shares that are learnt smaller.
    rounds_in : mapping of cluster to int
        In how many rounds a cluster took part; see `Probation`.
    assigner, proxy
        What the `ClusterAssigner` and the `ProxySource` remember.
    warned : bool
        Whether it was said that experts are used with the priors that they were trained with.
    """

    plain: Mapping[str, State] = field(default_factory=dict)
    means: Mapping[str, RunningMean] = field(default_factory=dict)
    latest: Mapping[Team, State] = field(default_factory=dict)
    velocity: Mapping[str, State] = field(default_factory=dict)
    knowledge: Knowledge = field(default_factory=Knowledge.nothing)
    early: EarlyStatistics = field(default_factory=EarlyStatistics)
    priors: Mapping[Team, Tensor] = field(default_factory=dict)
    expert_shares: Mapping[Team, float] = field(default_factory=dict)
    coverage: float = 1.0
    rounds_in: Mapping[int, int] = field(default_factory=dict)
    assigner: Any = None
    proxy: GeneratorState | None = None
    warned: bool = False
