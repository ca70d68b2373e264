"""What clients say of their data before they train, and again when their data changed."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import INFO
from typing import ClassVar

from flwr.app import Message
from flwr.common.logger import log
from torch import Tensor

from disue.errors import WireError
from disue.naming import by_name
from disue.wire import DescribeReply, DescribeRequest, error_reason
from strategies.rounds.registry import Client, ClientRegistry


class Descriptions(Mapping[str, Tensor]):
    """Client -> what it said of its data; all of one shape.

    That is known from the task and the model. Where it cannot be, as of a signature that says nothing of its shape, it
    is the one that most clients send.

    Parameters
    ----------
    registry : ClientRegistry
        The clients that are connected.
    tell_problem : callable
        Called with what went wrong with a client.
    shape : tuple of int, optional
        Of what a client says; None: it cannot be known.

    Attributes
    ----------
    changed : set of str
        Clients that described other data than before. Whoever makes use of that clears it.
    """

    stateful: ClassVar[tuple[str, ...]] = ("_known", "_digests", "_asked")

    def __init__(
        self, registry: ClientRegistry, tell_problem: Callable[[str], None], shape: tuple[int, ...] | None = None
    ) -> None:
        self.registry = registry
        self.tell_problem = tell_problem
        self.shape = shape
        self.changed: set[str] = set()
        self._known: dict[str, Tensor] = {}
        self._digests: dict[str, str | None] = {}
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def requests(self, request: DescribeRequest, sampled: Iterable[Client]) -> list[Message]:
        """Return what to ask: each client that is new, or that came back this round.

        Who did not answer, or not well, is asked again when it is sampled.
        """
        wanted = ({client.name for client in sampled} - self._known.keys()) | set(self.registry.returned)
        asked = [client for client in self.registry.clients if client.name not in self._asked or client.name in wanted]
        self._asked |= {client.name for client in asked}
        return [request.to_message(client.node_id) for client in asked]

    def outdated(self, request: DescribeRequest, trained_on: Mapping[str, str | None]) -> list[Message]:
        """Return what to ask: each client that has trained on other data than it described.

        Parameters
        ----------
        request : DescribeRequest
        trained_on : mapping of client to str or None
            The digests of the data that clients trained on in this round; None: a client does not say.
        """
        changed = {name for name, told in trained_on.items() if told not in (None, self._digests.get(name))}
        asked = [client for client in self.registry.clients if client.name in changed]
        for client in asked:
            log(INFO, "the data of %s changed; it is asked to describe them again", client.name)
        return [request.to_message(client.node_id) for client in asked]

    def take_in(self, replies: Iterable[Message]) -> None:
        """Keep what was said; a description of another shape is refused."""
        fresh: dict[str, DescribeReply] = {}
        for reply in replies:
            name = self.registry.name_of(reply.metadata.src_node_id)
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                fresh[name] = DescribeReply.from_message(reply)
            except WireError as error:
                self.tell_problem(f"{name} could not describe its data: {error}")
        expected, why = self.shape, ""
        if expected is None and fresh:
            told = self._known | {name: reply.signature for name, reply in fresh.items()}
            shapes = Counter(tuple(tensor.shape) for tensor in told.values())
            expected, why = shapes.most_common(1)[0][0], " like the other clients'"
        for name in by_name(fresh):
            shape = tuple(fresh[name].signature.shape)
            if shape == expected:
                self._keep(name, fresh[name])
            else:
                self.tell_problem(f"{name}: description rejected: it is {shape}; expected {expected}{why}")

    def _keep(self, name: str, reply: DescribeReply) -> None:
        if self._digests.get(name, reply.digest) != reply.digest:
            self.changed.add(name)
        self._known[name], self._digests[name] = reply.signature, reply.digest
