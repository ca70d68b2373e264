"""Questions to nodes of which some may never answer."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Message, Metadata
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

POLL_SECONDS = 0.5
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks for replies: shortest while they come."""
AT_A_TIME = 64
"""Replies that are taken together."""
NO_ANSWER = frozenset({ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE})
"""Errors that the SuperLink reports in place of a node that is gone."""


def send(grid: Grid, messages: Iterable[Message]) -> dict[str, int]:
    """Send messages without waiting; return the node of each message id, without those that could not be sent."""
    messages = list(messages)
    ids = list(grid.push_messages(messages)) if messages else []
    nodes = [message.metadata.dst_node_id for message in messages]
    return {sent: node for sent, node in zip(ids, nodes, strict=False) if sent}


def collect(grid: Grid, sent: Mapping[str, int], wait_for: Collection[int], timeout: float) -> dict[str, Message]:
    """Return the replies that are there, by the id of the message that they answer.

    Parameters
    ----------
    grid : Grid
    sent : mapping of message id to node id
        Messages that were not answered yet.
    wait_for : collection of int
        Nodes whose replies are waited for.
    timeout : float
        Seconds to wait for them at most.
    """
    open_ids, replies = set(sent), dict[str, Message]()
    deadline = time.monotonic() + timeout
    while open_ids:
        for reply in grid.pull_messages(sorted(open_ids)):
            if reply.metadata.reply_to_message_id in open_ids:
                replies.setdefault(reply.metadata.reply_to_message_id, reply)
        open_ids -= replies.keys()
        left = deadline - time.monotonic()
        if left <= 0.0 or not any(sent[message_id] in wait_for for message_id in open_ids):
            break
        time.sleep(min(POLL_SECONDS, left))
    return replies


def send_and_receive(grid: Grid, messages: Iterable[Message], timeout: float | None) -> Iterator[Message]:
    """Send messages, and return their replies as they come, of which no more than a few are in memory.

    Flower's own method of this name returns all of them together, and looks for them every three seconds.

    Parameters
    ----------
    grid : Grid
    messages : iterable of Message
    timeout : float or None
        Seconds to wait at most; None: until all have come.
    """
    sent = [message_id for message_id in grid.push_messages(list(messages)) if message_id]
    return _arriving(grid, sent, math.inf if timeout is None else time.monotonic() + timeout)


def _arriving(grid: Grid, sent: list[str], deadline: float) -> Iterator[Message]:
    pause = SHORTEST_PAUSE
    while sent:
        answered = set[str]()
        for first in range(0, len(sent), AT_A_TIME):
            for reply in grid.pull_messages(sent[first : first + AT_A_TIME]):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
            if time.monotonic() >= deadline:
                break
        sent = [message_id for message_id in sent if message_id not in answered]
        left = deadline - time.monotonic()
        if not sent or left <= 0.0:
            return
        pause = SHORTEST_PAUSE if answered else min(2.0 * pause, LONGEST_PAUSE)
        time.sleep(min(pause, left))


@contextmanager
def streaming(grid: Grid) -> Iterator[None]:
    """Let a grid send and receive as above."""
    own = grid.send_and_receive
    grid.send_and_receive = lambda messages, *, timeout=None: send_and_receive(grid, messages, timeout)  # type: ignore[method-assign]
    try:
        yield
    finally:
        grid.send_and_receive = own  # type: ignore[method-assign]


def is_no_answer(reply: Message) -> bool:
    """Return whether a reply is what the SuperLink says of a node that is gone, and not the node's own."""
    return reply.has_error() and reply.error.code in NO_ANSWER


def misfit(reply: Message, requests: Mapping[int, Metadata]) -> str:
    """Return why a reply is to none of the requests, by node; nothing if it is to one of them."""
    told = reply.metadata
    request = requests.get(told.src_node_id)
    if request is None:
        return "it was not asked"
    if told.group_id != request.group_id:
        return f"it answers a request of round {told.group_id}"
    if (told.reply_to_message_id, told.message_type) != (request.message_id, request.message_type):
        return "it answers another request"
    return ""
