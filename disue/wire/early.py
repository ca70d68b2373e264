"""What early features of a client's training data are like (`disue.early`)."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from disue.covariance import from_triangle, full_size
from disue.errors import WireError
from disue.signature import Signature
from disue.source import client_hash
from disue.tasks import ImageClassification
from disue.wire.reading import read_config, read_task, setting, task_values
from disue.wire.signature import read_shaped, signature_record

LONGEST = 1.001
"""A length of 1, as it may be after rounding."""


@dataclass(frozen=True)
class EarlyRequest:
    """Say what early features are like under the run's initial model; ``task`` as in `TrainRequest`.

    Attributes
    ----------
    most : int
        How many features there are at most.
    covariance : bool
        Whether to say, too, how they vary within all strata together.
    """

    most: int
    covariance: bool
    server_round: int
    task: ImageClassification | None = None

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        asked = {"most": self.most, "covariance": self.covariance, "server-round": self.server_round}
        config = ConfigRecord({"source-hash": client_hash(), **asked, **task_values(self.task)})
        return Message(
            RecordDict({"config": config}), node_id, f"{MessageType.QUERY}.early", group_id=str(self.server_round)
        )

    @classmethod
    def from_message(cls, message: Message) -> "EarlyRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        return cls(
            most=setting(config, "most", int),
            covariance=setting(config, "covariance", bool),
            server_round=setting(config, "server-round", int),
            task=read_task(config),
        )


@dataclass(frozen=True)
class EarlyReply:
    """How many examples of each stratum there are, the mean of their early features, and how these vary."""

    signature: Signature

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        return Message(RecordDict({"signature": signature_record(self.signature)}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message, shape: tuple[int, int], covariance: bool) -> "EarlyReply":
        """Read the reply; raise `WireError` if it lacks a part, or has one that is not allowed.

        Features are of length 1 at most, so that means are no longer, and the variances together no larger.
        ``shape``: of the means, (strata, features).
        """
        told = read_shaped(message, shape, (full_size(shape[1]),) if covariance else ())
        longest = float(told.prototypes.double().norm(dim=1).max())
        if longest > LONGEST:
            raise WireError(f"the mean of early features has length {longest:.6g}; expected 1 at most")
        if told.covariance is not None:
            trace = float(from_triangle(told.covariance.double()).trace())
            if trace > LONGEST:
                raise WireError(f"the covariance of early features has the trace {trace:.6g}; expected 1 at most")
        return cls(told)
