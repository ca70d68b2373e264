"""What clients say of their data before they train."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

from flwr.app import Message
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
    """

    stateful: ClassVar[tuple[str, ...]] = ("_known", "_asked")

    def __init__(
        self, registry: ClientRegistry, tell_problem: Callable[[str], None], shape: tuple[int, ...] | None = None
    ) -> None:
        self.registry = registry
        self.tell_problem = tell_problem
        self.shape = shape
        self._known: dict[str, Tensor] = {}
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def requests(self, description: str, sampled: Iterable[Client]) -> list[Message]:
        """Return what to ask: each client that is new, or that came back this round.

        Who did not answer, or not well, is asked again when it is sampled.
        """
        wanted = ({client.name for client in sampled} - self._known.keys()) | set(self.registry.returned)
        asked = [client for client in self.registry.clients if client.name not in self._asked or client.name in wanted]
        self._asked |= {client.name for client in asked}
        return [DescribeRequest(description, self.registry.task).to_message(client.node_id) for client in asked]

    def take_in(self, replies: Iterable[Message]) -> None:
        """Keep what was said; a description of another shape is refused."""
        fresh: dict[str, Tensor] = {}
        for reply in replies:
            name = self.registry.name_of(reply.metadata.src_node_id)
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                fresh[name] = DescribeReply.from_message(reply).signature
            except WireError as error:
                self.tell_problem(f"{name} could not describe its data: {error}")
        expected, why = self.shape, ""
        if expected is None and fresh:
            shapes = Counter(tuple(tensor.shape) for tensor in (self._known | fresh).values())
            expected, why = shapes.most_common(1)[0][0], " like the other clients'"
        for name in by_name(fresh):
            shape = tuple(fresh[name].shape)
            if shape == expected:
                self._known[name] = fresh[name]
            else:
                self.tell_problem(f"{name}: description rejected: it is {shape}; expected {expected}{why}")
