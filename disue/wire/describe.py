"""What a client's data are like, before it trains."""

from dataclasses import dataclass
from typing import Annotated

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from disue.errors import WireError
from disue.fields import LARGEST_FEATURE, Arrays, fields_of
from disue.source import client_hash
from disue.tasks import ImageClassification
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import read_config, read_task, setting, task_values

DESCRIBE = f"{MessageType.QUERY}.describe"


@dataclass(frozen=True)
class DescribeRequest:
    """Asks a client for a description of its data: a signature that needs no training.

    Attributes
    ----------
    description : str
        Which one; `client_app.describe` has them all.
    task : ImageClassification or None
        None: the client knows it from the run config.
    """

    description: str
    task: ImageClassification | None = None

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        config = ConfigRecord({"source-hash": client_hash(), "description": self.description, **task_values(self.task)})
        return Message(RecordDict({"config": config}), node_id, DESCRIBE)

    @classmethod
    def from_message(cls, message: Message) -> "DescribeRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(description=setting(config, "description", str), task=read_task(config))


@dataclass(frozen=True)
class DescribeReply:
    """What one client's data are like: a matrix of floats."""

    signature: Annotated[
        Tensor,
        Arrays(
            "what the client is clustered by, as a direction: its length counts for nothing",
            record="signature",
            key="description",
            high=LARGEST_FEATURE,
            shape="a matrix of (classes, features); `subspace`: (inputs, 3); `anchor-gradient`: (1, parameters); "
            "`privacy=secure`: (1, `sketch-size`)",
        ),
    ]

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return Message(RecordDict({"signature": to_record({"description": self.signature})}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message) -> "DescribeReply":
        """Read the reply; raise `WireError` if it is no matrix of float32, or a value is out of range."""
        signature = read_state(message, "signature").get("description")
        if signature is None:
            raise WireError("the signature lacks 'description'")
        if signature.ndim != 2 or not signature.numel():
            raise WireError(f"the description has shape {tuple(signature.shape)}; expected a matrix of float32")
        field, _ = fields_of(DescribeReply)["signature"]
        return cls(field.check(signature, "description"))
