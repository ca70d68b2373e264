"""A question to some of the clients, and what they answer."""

from collections.abc import Callable, Iterable, Sequence
from logging import WARNING
from typing import TypeVar

from flwr.app import Message
from flwr.common.logger import log

from disue.errors import WireError
from disue.wire import error_reason
from strategies.rounds.registry import Client

Ask = Callable[[list[Message]], Iterable[Message]]
Answer = TypeVar("Answer")


def answers_of(
    ask: Ask,
    clients: Sequence[Client],
    question: Callable[[Client], Message],
    read: Callable[[Message, Client], Answer],
    problem: str,
) -> dict[str, Answer]:
    """Return what clients answer, by client, sorted by name.

    A client that does not answer, or not as it must, is left out, and the log says so.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked.
    question : callable
        Returns the message to a client.
    read : callable
        Returns what a client's answer says, or raises `WireError`.
    problem : str
        What the log says that a client did not do.
    """
    asked = {client.node_id: client for client in clients}
    answers: dict[str, Answer] = {}
    for reply in ask([question(client) for client in asked.values()]) if asked else ():
        client = asked[reply.metadata.src_node_id]
        try:
            if reply.has_error():
                raise WireError(error_reason(reply))
            answers[client.name] = read(reply, client)
        except WireError as error:
            log(WARNING, "%s %s: %s", client.name, problem, error)
    return dict(sorted(answers.items()))
