"""How well the mixtures of two models fit the client's data: asked to learn how much of what was taught is of use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from disue.errors import WireError
from disue.fields import LARGEST_LOSS, Reals
from disue.models import State
from disue.objective import PLAIN, LocalObjective
from disue.tasks import ImageClassification
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import make_config, read_config, read_fields, read_objective, read_task, setting

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the student in the mixtures; the rest is the average."""

GUARDS = (
    "part of the sums by which the share of the student is chosen; each counts up to 2 ln C, C the number of classes, "
    "and its difference from that of the average up to `max-fit` times the median of the others'"
)


@dataclass(frozen=True)
class CompareRequest:
    """Say how well mixtures of student and average fit the training data; ``task`` as in `TrainRequest`."""

    student: State
    average: State
    server_round: int
    objective: LocalObjective = PLAIN
    task: ImageClassification | None = None

    def to_message(self, node_id: int, record: Callable[[State], ArrayRecord] = to_record) -> Message:
        """Return the request for one node; ``record`` as in `TrainRequest.to_message`."""
        config = make_config(self.server_round, self.objective, self.task)
        content = RecordDict({"arrays": record(self.student), "average": record(self.average), "config": config})
        return Message(content, node_id, f"{MessageType.QUERY}.compare", group_id=str(self.server_round))

    @classmethod
    def from_message(cls, message: Message) -> "CompareRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(
            student=read_state(message, "arrays"),
            average=read_state(message, "average"),
            server_round=setting(config, "server-round", int),
            objective=read_objective(config),
            task=read_task(config),
        )


@dataclass(frozen=True)
class CompareReply:
    """Mean losses on the client's training data, with its own label prior: of cross-entropy in nats.

    Attributes
    ----------
    fits : tuple of float
        Of the mixtures with the shares `SHARES`.
    """

    fits: Annotated[tuple[float, ...], Reals(GUARDS, high=LARGEST_LOSS, most=len(SHARES))]

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return Message(RecordDict({"metrics": MetricRecord({"fits": list(self.fits)})}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message) -> "CompareReply":
        """Read the reply; raise `WireError` if it lacks a number, or one is not allowed."""
        reply = cls(**read_fields(cls, message))
        if len(reply.fits) != len(SHARES):
            raise WireError(f"fits has {len(reply.fits)} numbers; expected {len(SHARES)}")
        return reply
