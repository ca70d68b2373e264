"""Who a node is."""

from dataclasses import dataclass
from typing import Annotated

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from disue.errors import WireError
from disue.fields import MOST_EXAMPLES, Text, Whole
from disue.source import client_hash
from disue.tasks import DataSummary
from disue.wire.reading import PROTOCOL, read_config, read_fields, require_protocol, setting

MOST_PARTITIONS = 10**7


@dataclass(frozen=True)
class HelloRequest:
    """Asks a node who it is, and says what the run will ask for beside updates and evaluations.

    Attributes
    ----------
    prototypes : bool
        Label counts and class prototypes, with every update.
    description : bool
        A description of the client's data, before it trains.
    """

    prototypes: bool = False
    description: bool = False

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        asked = {"prototypes": self.prototypes, "description": self.description}
        config = ConfigRecord({"protocol": PROTOCOL, "source-hash": client_hash(), **asked})
        return Message(RecordDict({"config": config}), node_id, MessageType.QUERY)

    @classmethod
    def from_message(cls, message: Message) -> "HelloRequest":
        """Read the request.

        Raises
        ------
        FederationError
            If the server speaks another protocol, or runs other source code.
        WireError
            If it does not say what it asks for.
        """
        require_protocol(message)
        config = read_config(message)
        return cls(**{name: setting(config, name, bool) for name in ("prototypes", "description")})


@dataclass(frozen=True)
class HelloReply:
    """Who a node is.

    Attributes
    ----------
    name : str
        Its stable name.
    num_examples : int
        Its training examples; 0: it does not say.
    group : int
        The planted group that its data come from; -1 where there is none.
    num_partitions : int
        The number of clients that the dataset is divided among.
    model : str
        The architecture that it trains.
    summary : DataSummary or None
        What it says of data that are its own; None where they are a part of a dataset.
    """

    name: Annotated[
        str, Text("what the client is known by; a second client of the name is refused", record="config", is_name=True)
    ]
    num_examples: Annotated[
        int,
        Whole(
            "reported; with own data the weight of its `mean` and `std`, up to `max-weight` times the median of the "
            "others'",
            high=MOST_EXAMPLES,
        ),
    ]
    group: Annotated[
        int,
        Whole("reported in `ari` and `nmi`; `method=oracle` believes it, which is for simulations", low=-1, high=10**6),
    ]
    num_partitions: Annotated[
        int,
        Whole(
            "a client that says another number than most do at the start is refused, and one into which the dataset "
            "cannot be divided",
            high=MOST_PARTITIONS,
        ),
    ]
    model: Annotated[
        str, Text("the architecture that it is sent; one that the run does not know is refused", record="config")
    ]
    summary: DataSummary | None = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        config = ConfigRecord({"name": self.name, "model": self.model})
        metrics = MetricRecord(
            {"num-examples": self.num_examples, "group": self.group, "num-partitions": self.num_partitions}
        )
        if self.summary is not None:
            config["class-names"] = list(self.summary.class_names)
            metrics["mean"], metrics["std"] = list(self.summary.mean), list(self.summary.std)
        return Message(RecordDict({"config": config, "metrics": metrics}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message) -> "HelloReply":
        """Read the reply; raise `WireError` if it has another form."""
        told = read_fields(cls, message)
        own_data = "class-names" in message.content.config_records["config"]
        try:
            summary = DataSummary(**read_fields(DataSummary, message)) if own_data else None
        except ValueError as error:
            raise WireError(f"the hello reply is refused: {error}") from None
        return cls(**told, summary=summary)
