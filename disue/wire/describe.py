"""What a client's data are like, before it trains."""

from dataclasses import dataclass
from typing import Annotated

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from torch import Tensor

from disue.errors import WireError
from disue.fields import LARGEST_FEATURE, Arrays, Text, fields_of
from disue.source import client_hash
from disue.tasks import ImageClassification
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import read_config, read_fields, read_task, setting, task_values

DESCRIBE = f"{MessageType.QUERY}.describe"
DIGEST_LENGTH = 16
"""Hexadecimal digits: 64 bits."""
Digest = Annotated[
    str | None,
    Text(
        "where that of an update is not that of the client's description, or of what it told of early features, the "
        "client is asked for these again, once a round at most",
        record="config",
        longest=DIGEST_LENGTH,
    ),
]
"""What tells training data of a client from any others that it has in the run; None: the client does not say."""


@dataclass(frozen=True)
class DescribeRequest:
    """Asks a client for a description of its data: a signature that needs no training.

    Attributes
    ----------
    description : str
        Which one; `client_app.describe` has them all.
    task : ImageClassification or None
        None: the client knows it from the run config.
    run : str
        What the run is called: digests are of one run, and those of two cannot be compared.
    """

    description: str
    task: ImageClassification | None = None
    run: str = ""

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        asked = {"description": self.description, "run": self.run}
        config = ConfigRecord({"source-hash": client_hash(), **asked, **task_values(self.task)})
        return Message(RecordDict({"config": config}), node_id, DESCRIBE)

    @classmethod
    def from_message(cls, message: Message) -> "DescribeRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        description, run = (setting(config, key, str) for key in ("description", "run"))
        return cls(description=description, task=read_task(config), run=run)


@dataclass(frozen=True)
class DescribeReply:
    """What one client's data are like: a matrix of floats, and a digest of the data."""

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
    digest: Digest = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        content = RecordDict({"signature": to_record({"description": self.signature})})
        if self.digest is not None:
            content["config"] = ConfigRecord({"digest": self.digest})
        return Message(content, reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message) -> "DescribeReply":
        """Read the reply; raise `WireError` if it is no matrix of float32, or a value is not allowed."""
        signature = read_state(message, "signature").get("description")
        if signature is None:
            raise WireError("the signature lacks 'description'")
        if signature.ndim != 2 or not signature.numel():
            raise WireError(f"the description has shape {tuple(signature.shape)}; expected a matrix of float32")
        field, _ = fields_of(DescribeReply)["signature"]
        return cls(field.check(signature, "description"), **read_fields(cls, message))
