"""Who a node is."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from disue.errors import WireError
from disue.naming import LONGEST_NAME, normal_name
from disue.source import source_hash
from disue.task import DataSummary
from disue.wire.reading import integer, read_config, read_metrics


@dataclass(frozen=True)
class HelloRequest:
    """Asks a node who it is."""

    def to_message(self, node_id: int) -> Message:
        """Return the request for one node."""
        return Message(RecordDict({"config": ConfigRecord({"source-hash": source_hash()})}), node_id, MessageType.QUERY)

    @staticmethod
    def check(message: Message) -> None:
        """Raise `FederationError` if the server runs other source code."""
        read_config(message)


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

    name: str
    num_examples: int
    group: int
    num_partitions: int
    model: str
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
        config = message.content.config_records.get("config", ConfigRecord())
        metrics = read_metrics(message)
        return cls(
            name=_text(config, "name"),
            num_examples=integer(metrics, "num-examples", at_least=0),
            group=integer(metrics, "group", at_least=-1),
            num_partitions=integer(metrics, "num-partitions", at_least=0),
            model=_text(config, "model"),
            summary=_read_summary(config, metrics),
        )


def _read_summary(config: ConfigRecord, metrics: MetricRecord) -> DataSummary | None:
    if "class-names" not in config:
        return None
    names, mean, std = config["class-names"], metrics.get("mean"), metrics.get("std")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise WireError(f"the hello reply's class-names are {names!r}; expected texts")
    if not (isinstance(mean, list) and isinstance(std, list)):
        raise WireError("the hello reply lacks the pixels' mean and std")
    try:
        return DataSummary(tuple(map(str, names)), tuple(map(float, mean)), tuple(map(float, std)))
    except ValueError as error:
        raise WireError(f"the hello reply is refused: {error}") from None


def _text(config: ConfigRecord, key: str) -> str:
    if not isinstance(value := config.get(key), str):
        raise WireError(f"the hello reply's {key} is {value!r}; expected text")
    value = normal_name(value)
    if not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise WireError(f"the hello reply's {key} is {value[:LONGEST_NAME]!r}; expected 1 to {LONGEST_NAME} letters")
    return value
