"""What clients were asked, and which of their replies answer it."""

import time
from collections.abc import Iterable, Iterator
from logging import WARNING

from flwr.app import Message, Metadata
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.wire import message_bytes
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import RoundStats
from strategies.rounds.transport import is_no_answer, misfit


class ReplyCollector:
    """Takes from each client one reply to what it was asked last.

    Parameters
    ----------
    registry : ClientRegistry
        Gets to know who did not answer.

    Attributes
    ----------
    misfits : set of int
        Nodes whose replies answered something else, and who sent no other.
    problems : list of str
        What went wrong, for an error that has to name it; whoever begins a round clears them.
    """

    def __init__(self, registry: ClientRegistry) -> None:
        self.registry = registry
        self.misfits: set[int] = set()
        self.problems: list[str] = []
        self._requests: dict[int, Metadata] = {}
        self._began = 0.0

    def begin(self, messages: list[Message]) -> list[Message]:
        """Return the messages, which are about to be sent."""
        self._began = time.perf_counter()
        self._requests = {message.metadata.dst_node_id: message.metadata for message in messages}
        return messages

    def answers(self, replies: Iterable[Message], stats: RoundStats, phase: str) -> Iterator[Message]:
        """Yield what nodes replied themselves to what they were asked, and go on without those that were silent.

        The seconds since the beginning are added to a phase.
        """
        yield from self._fitting(replies)
        stats.seconds[phase] += time.perf_counter() - self._began

    def ask(self, grid: Grid, messages: list[Message], stats: RoundStats, phase: str = "local") -> Iterator[Message]:
        """Send messages, and yield the answers as they come; their bytes are counted as the phase's."""
        down, up = sum(map(message_bytes, messages)), 0
        for reply in self._fitting(grid.send_and_receive(self.begin(messages), timeout=self.registry.hellos.timeout)):
            up += message_bytes(reply)
            yield reply
        if phase == "evaluation":
            stats.bytes_evaluation += down + up
        else:
            stats.bytes_down += down
            stats.bytes_up += up

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
                self.tell_problem(f"{self.registry.name_of(node)}: reply rejected: {reason}")
                self.misfits |= {node} & self._requests.keys()
            else:
                answered.add(node)
                yield reply
        self.misfits -= answered
        self.registry.leave_out(self._requests.keys() - answered - self.misfits)
