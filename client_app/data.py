"""Where a client's data come from: a part of the run's dataset, or files of its own."""

from collections.abc import Callable
from typing import TypeVar

from disue.config import ClientConfig
from disue.data import OWN, ClientData, build_federation
from disue.data.own import OwnSplit, open_own
from disue.data.scenarios import NO_GROUP
from disue.errors import DataError, WireError
from disue.nodes import NodeConfig
from disue.tasks import ImageClassification
from disue.wire import HelloReply

T = TypeVar("T")


def introduce(config: ClientConfig, node: NodeConfig, model: str) -> HelloReply:
    """Return who the client is and what data it has.

    Raises
    ------
    DataError
        If its data cannot be used.
    """
    if node.data_path is not None:
        split, summary = _own(config, node, node.data_path, OwnSplit.summary)
        return HelloReply(node.client, len(split.train), NO_GROUP, 0, model, summary)
    partition, partitions = _partition(config, node)
    data = build_federation(config, partitions).client(partition)
    return HelloReply(node.client, len(data.train), data.group, partitions, model)


def open_data(
    config: ClientConfig, node: NodeConfig, task: ImageClassification | None
) -> tuple[ImageClassification, ClientData]:
    """Return what the run is about, and the client's data as its models take them.

    Parameters
    ----------
    config : ClientConfig
    node : NodeConfig
    task : ImageClassification or None
        As the server tells it to clients with data of their own.

    Raises
    ------
    DataError
        If the data cannot be used.
    WireError
        If the server did not tell the task.
    """
    if node.data_path is None:
        partition, partitions = _partition(config, node)
        federation = build_federation(config, partitions)
        return federation.task, federation.client(partition)
    if task is None:
        raise WireError("the request does not say which classes there are")
    return task, _own(config, node, node.data_path, lambda split: split.for_task(task))[1]


def _own(config: ClientConfig, node: NodeConfig, data_path: str, use: Callable[[OwnSplit], T]) -> tuple[OwnSplit, T]:
    """Open the client's own data and use them; what is wrong with them is said with the client's name."""
    if config.dataset != OWN:
        raise DataError(
            f"{node.client}: the node has data of its own and the run's dataset is '{config.dataset}'; "
            f"run it with dataset={OWN}"
        )
    try:
        split = open_own(data_path, config.shape, config.test_fraction, config.seed, node.client)
        return split, use(split)
    except DataError as error:
        raise DataError(f"{node.client}: {error}") from None


def _partition(config: ClientConfig, node: NodeConfig) -> tuple[int, int]:
    if config.dataset == OWN or node.partition_id is None or node.num_partitions is None:
        raise DataError(f"{node.client}: dataset '{OWN}' needs a name and a data-path in the node config")
    return node.partition_id, node.num_partitions
