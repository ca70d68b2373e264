"""What clients were asked, and which of their replies answer it."""

import time
from collections.abc import Iterable, Iterator, Mapping
from logging import WARNING

from flwr.app import Message, Metadata
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.wire import message_bytes
from strategies.exchange import is_no_answer
from strategies.outcome import RoundOutcome
from strategies.roster import Roster


class Dialogue:
    """Takes from each client one reply to what it was asked last.

    Parameters
    ----------
    roster : Roster
        Gets to know who did not answer.

    Attributes
    ----------
    misfits : set of int
        Nodes whose replies answered something else, and who sent no other.
    problems : list of str
        What went wrong, for an error that has to name it; whoever begins a round clears them.
    """

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.misfits: set[int] = set()
        self.problems: list[str] = []
        self._requests: dict[int, Metadata] = {}
        self._began = 0.0

    def begin(self, messages: list[Message]) -> list[Message]:
        """Return the messages, which are about to be sent."""
        self._began = time.perf_counter()
        self._requests = {message.metadata.dst_node_id: message.metadata for message in messages}
        return messages

    def answers(self, replies: Iterable[Message], outcome: RoundOutcome, phase: str) -> Iterator[Message]:
        """Yield what nodes replied themselves to what they were asked, and go on without those that were silent.

        The seconds since the beginning are added to a phase.
        """
        yield from self._fitting(replies)
        outcome.seconds[phase] += time.perf_counter() - self._began

    def ask(self, grid: Grid, messages: list[Message], outcome: RoundOutcome) -> list[Message]:
        """Send messages and return the answers; their bytes are counted."""
        sent = self.begin(messages)
        replies = list(self._fitting(grid.send_and_receive(sent, timeout=self.roster.timeout)))
        outcome.bytes_down += sum(map(message_bytes, messages))
        outcome.bytes_up += sum(map(message_bytes, replies))
        return replies

    def tell_problem(self, what: str) -> None:
        """Log a problem with a client, and remember it."""
        self.problems.append(what)
        log(WARNING, what)

    def _fitting(self, replies: Iterable[Message]) -> Iterator[Message]:
        answered = set[int]()
        self.misfits = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            if is_no_answer(reply):
                continue
            if reason := misfit(reply, self._requests) or ("it has answered before" if node in answered else ""):
                self.tell_problem(f"{self.roster.name_of(node)}: reply rejected: {reason}")
                self.misfits |= {node} & self._requests.keys()
            else:
                answered.add(node)
                yield reply
        self.misfits -= answered
        self.roster.leave_out(self._requests.keys() - answered - self.misfits)


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
