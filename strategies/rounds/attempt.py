"""One attempt at a round: who was asked, what they were sent, and whether enough of them answered."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from disue.errors import TooFewUpdates
from disue.models import State
from strategies.rounds.registry import Client
from strategies.rounds.replies import ReplyCollector
from strategies.rounds.stats import Participation, RoundStats


@dataclass(frozen=True)
class Sent:
    """What a client was sent to train from.

    Attributes
    ----------
    name : str
        The client.
    start : State or None
        None: the candidate that it chooses.
    candidates : tuple of State
    universal : State
        The universal model of its architecture.
    second : State or None
        Where a second model starts; None: there is none.
    """

    name: str
    start: State | None
    candidates: tuple[State, ...]
    universal: State
    second: State | None = None


@dataclass
class Attempt:
    """See the module.

    Attributes
    ----------
    grid : Grid
    replies : ReplyCollector
    participation : Participation
    stats : RoundStats
        Of this attempt, with what the one before cost.
    sampled : list of Client
    left_out : int
        How many clients take no part, as they did not answer.
    sent : dict of client to Sent
        Of those that were asked to train.
    tried : dict of client to bool
        Of the sampled clients, whose answers are of use.
    """

    grid: Grid
    replies: ReplyCollector
    participation: Participation
    stats: RoundStats
    sampled: list[Client]
    left_out: int
    sent: Mapping[str, Sent] = field(default_factory=dict)
    tried: dict[str, bool] = field(default_factory=dict)

    def ask(self, messages: list[Message], phase: str = "local") -> Iterable[Message]:
        """Send messages, and yield the answers as they come; their bytes are counted as the phase's."""
        return self.replies.ask(self.grid, messages, self.stats, phase)

    def require_enough(self, usable: Collection[str]) -> None:
        """Say whose answers are of use.

        Raises
        ------
        TooFewUpdates
            If they are fewer than ``min-success-fraction`` of the sampled clients and of those left out.
        """
        self.tried = {client.name: client.name in usable for client in self.sampled}
        self.require(len(usable))

    def require(self, usable: int) -> None:
        """Raise `TooFewUpdates` if so many usable answers are too few."""
        asked = len(self.sampled) + round(self.participation.fraction_train * self.left_out)
        needed = max(1, math.ceil(self.participation.min_success_fraction * asked - 1e-9))
        if usable < needed:
            problems = self.replies.problems
            raise TooFewUpdates(
                f"min-success-fraction: {usable} of {asked} clients sent a usable update in round "
                f"{self.stats.server_round} and {needed} are needed"
                f"{', also when it was repeated' if self.stats.repeats else ''}; "
                + (f"the first problem was: {problems[0]}" if problems else "the others did not answer")
            )
