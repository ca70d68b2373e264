"""What the features of a client's training data are like under a model that it is sent."""

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from disue.models import State
from disue.signature import Signature, SignatureParts
from disue.source import client_hash
from disue.tasks import ImageClassification
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import read_config, read_task, setting, task_values
from disue.wire.signature import read_signature, signature_record


@dataclass(frozen=True)
class FeaturesRequest:
    """Say what the features of the training data are like under this model; ``task`` as in `TrainRequest`."""

    state: State
    server_round: int
    task: ImageClassification | None = None

    def to_message(self, node_id: int, record: Callable[[State], ArrayRecord] = to_record) -> Message:
        """Return the request for one node; ``record`` as in `TrainRequest.to_message`."""
        config = ConfigRecord(
            {"source-hash": client_hash(), "server-round": self.server_round, **task_values(self.task)}
        )
        content = RecordDict({"arrays": record(self.state), "config": config})
        return Message(content, node_id, f"{MessageType.QUERY}.features", group_id=str(self.server_round))

    @classmethod
    def from_message(cls, message: Message) -> "FeaturesRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(read_state(message, "arrays"), setting(config, "server-round", int), read_task(config))


@dataclass(frozen=True)
class FeaturesReply:
    """How many examples of each stratum there are, and the mean and the covariance of their features."""

    signature: Signature

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return Message(RecordDict({"signature": signature_record(self.signature)}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message, num_strata: int, model: State) -> "FeaturesReply":
        """Read the reply; raise `WireError` if it lacks a part, or has one that is not allowed."""
        return cls(read_signature(message, SignatureParts(num_strata, "each"), model))
