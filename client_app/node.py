"""Which client a node is, with the run's data taken into account."""

from flwr.app import Context

from disue.config.data import DataSettings
from disue.data import OWN
from disue.data.rehearsal import KEY, clients_below
from disue.errors import DataError
from disue.nodes import NodeConfig


def this_node(context: Context) -> NodeConfig:
    """Return the node config. In a rehearsal it is that of the client whose data are the node's part of ``own-data``.

    Raises
    ------
    ConfigError
        If the node config is wrong.
    DataError
        If there are no such data.
    """
    node = NodeConfig.from_flower(context.node_config)
    if context.run_config.get("dataset") != OWN or node.partition_id is None:
        return node
    config = DataSettings.from_flower(context.run_config)
    if not config.own_data:
        return node
    clients = list(clients_below(config.own_data).items())
    if node.num_partitions != len(clients):
        raise DataError(
            f"{KEY}: '{config.own_data}' has {len(clients)} clients' data; the simulation has {node.num_partitions} "
            "clients, use as many"
        )
    name, place = clients[node.partition_id]
    return node.model_copy(update={"name": name, "data_path": str(place), "partition_id": None, "num_partitions": None})
