"""The end of a run, for clients that kept something for it."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from disue.source import client_hash
from disue.wire.reading import read_config, setting

FORGET = f"{MessageType.QUERY}.forget"


@dataclass(frozen=True)
class ForgetRequest:
    """Asks a client to delete what it kept for a run. The answer is empty.

    Attributes
    ----------
    run : str
        As in `TrainRequest`.
    """

    run: str

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        config = ConfigRecord({"source-hash": client_hash(), "run": self.run})
        return Message(RecordDict({"config": config}), node_id, FORGET)

    @classmethod
    def from_message(cls, message: Message) -> "ForgetRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        return cls(setting(read_config(message), "run", str))
