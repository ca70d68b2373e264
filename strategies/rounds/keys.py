"""With which key a node was registered: what a client's name is bound to, where nodes have keys that last."""

import hashlib

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from strategies.rounds.packing import PackedGrid


def node_keys(grid: Grid) -> dict[int, str]:
    """Return the nodes that are connected, each with the fingerprint of its key; packed clients have their node's."""
    if isinstance(grid, PackedGrid):
        return {client: key for node, key in node_keys(grid.nodes).items() for client in grid.clients_of(node)}
    return {node.node_id: fingerprint(node) for node in grid.get_nodes()}


def fingerprint(node: NodeInfo) -> str:
    """Return the SHA-256 of the key with which a node was registered; empty if the node registered itself.

    A node that is started without a key makes itself a new one each time. Flower tells the two apart in one way only:
    ``flwr supernode register`` can give a node a name or a location, and a node cannot give itself either.
    """
    registered = node.HasField("name") or node.HasField("location")
    return hashlib.sha256(node.public_key).hexdigest() if registered else ""
