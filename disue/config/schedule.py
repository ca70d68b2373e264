"""How long a run is, how often clients evaluate, and its seed."""

from typing import ClassVar

from pydantic import Field

from disue.config.settings import Changeable, Settings


class ScheduleSettings(Settings):
    """Rounds and seed."""

    shared: ClassVar[bool] = True

    num_server_rounds: Changeable[int] = Field(10, ge=1, le=10**6, description="federated rounds")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="the one seed from which every random choice is derived")
    evaluate_every: int = Field(
        1, ge=1, le=10**6, description="evaluate on the clients every n rounds, and after the last"
    )
