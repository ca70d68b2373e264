"""Which of two models fits the client's data better: asked where the server cannot tell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from disue.fields import LARGEST_LOSS, Real
from disue.models import State
from disue.objective import PLAIN, LocalObjective
from disue.tasks import ImageClassification
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import make_config, read_config, read_fields, read_objective, read_task, setting

GUARDS = (
    "part of the sum by which the student or the average is kept; counts up to 2 ln C, C the number of classes, and "
    "the difference of a client's two up to `max-fit` times the median of the others'"
)


@dataclass(frozen=True)
class CompareRequest:
    """Say how well the student and the average fit the training data; ``task`` as in `TrainRequest`."""

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
    """Mean cross-entropies (nats) on the client's training data, with its own label prior."""

    student_fit: Annotated[float, Real(GUARDS, high=LARGEST_LOSS)]
    average_fit: Annotated[float, Real(GUARDS, high=LARGEST_LOSS)]

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        metrics = MetricRecord({"student-fit": self.student_fit, "average-fit": self.average_fit})
        return Message(RecordDict({"metrics": metrics}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message) -> "CompareReply":
        """Read the reply; raise `WireError` if it lacks a number, or one is not allowed."""
        return cls(**read_fields(cls, message))
