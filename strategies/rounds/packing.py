"""Clients that share a node: to the strategy each is a node of its own."""

from collections.abc import Iterable, Mapping
from copy import copy
from logging import WARNING
from uuid import uuid4

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from disue.errors import WireError
from disue.wire.bundle import Part, bundle, unbundle
from strategies.rounds.transport import is_no_answer, misfit, send_and_receive


class PackedGrid(Grid):
    """A Grid on whose nodes several clients sit, to which it sends one message together.

    The client on seat s of node n has node id ``n * seats + s``, and its message the id of the bundle and the seat.

    Parameters
    ----------
    grid : Grid
        Has the nodes.
    seats : int
        Clients on each node.

    Attributes
    ----------
    nodes : Grid
        As given.
    open : dict of str to pair
        For each bundle that is not answered yet its metadata, and by seat what is kept of its messages: all but their
        content.
    """

    def __init__(self, grid: Grid, seats: int) -> None:
        self.nodes = grid
        self._seats = seats
        self.open: dict[str, tuple[Metadata, dict[int, Message]]] = {}
        self._arrived: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self.nodes.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self.nodes.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return self.nodes.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all clients."""
        return [client for node in self.nodes.get_node_ids() for client in self.clients_of(node)]

    def clients_of(self, node: int) -> range:
        """Return the ids of the clients on a node."""
        return range(node * self._seats, (node + 1) * self._seats)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, one to each node for all of its clients that are asked the same kind of question."""
        messages = list(messages)
        groups: dict[tuple[int, str, str, float], dict[int, Message]] = {}
        for message in messages:
            told = message.metadata
            node, seat = divmod(told.dst_node_id, self._seats)
            groups.setdefault((node, told.message_type, told.group_id, told.ttl), {})[seat] = message
        bundles = [
            Message(bundle({s: m.content for s, m in group.items()}), node, kind, ttl=ttl, group_id=group_id)
            for (node, kind, group_id, ttl), group in groups.items()
        ]
        sent = list(self.nodes.push_messages(bundles)) if bundles else []
        ids: dict[int, str] = {}
        for bundle_id, group in zip(sent, groups.values(), strict=False):
            for seat, message in group.items():
                ids[id(message)] = message.metadata.__dict__["_message_id"] = _id_of(bundle_id, seat)
        for bundle_id, message, group in zip(sent, bundles, groups.values(), strict=False):
            if bundle_id:
                self.open[bundle_id] = message.metadata, {seat: _envelope(own) for seat, own in group.items()}
        return [ids.get(id(message), "") for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, as far as they are there."""
        wanted = list(message_ids)
        bundles = {message_id.rpartition("/")[0] for message_id in wanted if message_id not in self._arrived}
        for reply in self.nodes.pull_messages([bundle_id for bundle_id in self.open if bundle_id in bundles]):
            bundle_id = reply.metadata.reply_to_message_id
            if bundle_id not in self.open:
                continue
            asked, clients = self.open[bundle_id]
            if not is_no_answer(reply) and (reason := misfit(reply, {asked.dst_node_id: asked})):
                log(WARNING, "node %s: reply rejected: %s", reply.metadata.src_node_id, reason)
                continue
            del self.open[bundle_id]
            for single in self._taken_apart(reply, clients):
                self._arrived[single.metadata.reply_to_message_id] = single
        return [self._arrived.pop(message_id) for message_id in wanted if message_id in self._arrived]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, and return their replies as they come."""
        return send_and_receive(self, messages, timeout)

    def _taken_apart(self, reply: Message, asked: Mapping[int, Message]) -> list[Message]:
        """Return a reply of each client that was asked."""
        if reply.has_error():
            return [_reply(reply.error, message) for message in asked.values()]
        try:
            parts = unbundle(reply.content)
        except WireError as error:
            parts = dict.fromkeys(asked, str(error))
        return [
            _reply(_content_or_error(parts.get(seat, "its node did not answer for it")), message)
            for seat, message in asked.items()
        ]


def seated(grid: Grid, seats: int) -> Grid:
    """Return a Grid of clients, so many of which sit on each node."""
    return grid if seats == 1 else PackedGrid(grid, seats)


def _id_of(bundle_id: str, seat: int) -> str:
    return f"{bundle_id}/{seat}" if bundle_id else ""


def _envelope(message: Message) -> Message:
    """Return a message without what is in it: all that a reply needs, and it may never come."""
    envelope = copy(message)
    envelope.content = RecordDict()
    return envelope


def _content_or_error(part: Part) -> RecordDict | Error:
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, part) if isinstance(part, str) else part


def _reply(told: RecordDict | Error, message: Message) -> Message:
    reply = Message(told, reply_to=message)
    reply.metadata.__dict__["_message_id"] = uuid4().hex
    return reply
