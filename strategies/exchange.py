"""Questions to nodes of which some may never answer."""

import time
from collections.abc import Collection, Iterable, Mapping

from flwr.app import Message, Metadata
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

POLL_SECONDS = 0.5
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
