"""What nodes are asked first: who was asked and when, who has not answered, and what is wrong with the answers."""

import time
from collections.abc import Collection
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.errors import DisueError, WireError
from disue.wire import HelloRequest
from strategies.rounds.transport import collect, send


class Hellos:
    """Says hello to the nodes that take no part.

    A node is waited for once, at most ``timeout`` seconds; one that was refused is asked again each time, and one that
    was silent once its time is up, without waiting for it.

    Parameters
    ----------
    request : HelloRequest
    timeout : float
        Seconds to wait for answers.
    """

    def __init__(self, request: HelloRequest, timeout: float) -> None:
        self.request = request
        self.timeout = timeout
        self._asked: dict[int, float] = {}
        self._unanswered: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._refusals: dict[int, str] = {}

    def say(self, grid: Grid, present: Collection[int], taking_part: Collection[int]) -> dict[int, Message]:
        """Return the answers that are there, by node. Who is new is waited for."""
        self._asked = {node: when for node, when in self._asked.items() if node in present}
        self._unanswered = {sent: node for sent, node in self._unanswered.items() if node in present}
        self._refusals = {node: reason for node, reason in self._refusals.items() if node in present}
        now = time.monotonic()
        pending = {node for node in self._unanswered.values() if now - self._asked[node] < self.timeout}
        strangers = set(present) - set(taking_part) - pending
        new = strangers - self._asked.keys()
        self._asked |= dict.fromkeys(strangers, now)
        self._unanswered |= send(grid, [self.request.to_message(node) for node in sorted(strangers)])
        replies = collect(grid, self._unanswered, new, self.timeout)
        answers = {self._unanswered[sent]: reply for sent, reply in replies.items()}
        self._unanswered = {sent: node for sent, node in self._unanswered.items() if node not in answers}
        return answers

    def require_one_name(self, node_id: int, name: str) -> None:
        """Raise `WireError` if a node that calls itself so had another name before."""
        if self._names.setdefault(node_id, name) != name:
            raise WireError(f"it says that it is '{name}', and was '{self._names[node_id]}' before")

    def refuse(self, node_id: int, error: DisueError) -> None:
        """Log why a node cannot take part, unless nothing else was logged of it last."""
        if self._refusals.get(node_id) != str(error):
            self._refusals[node_id] = str(error)
            log(WARNING, "node %s cannot take part: %s", node_id, error)

    def welcome(self, node_id: int) -> None:
        """Forget why a node could not take part."""
        self._refusals.pop(node_id, None)
