"""A node that answers for several clients, which sit on it, one on each seat.

Every client has its own partition of the data and its own state, as if it had a node to itself.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import TypeVar

from flwr.app import Context, Message, MessageType, RecordDict

from client_app.release import withhold_errors
from client_app.training_job import TrainingJob, run_batched
from disue.config import ClientConfig
from disue.device import prepare_device
from disue.errors import ConfigError
from disue.nodes import NodeConfig
from disue.wire.bundle import Part, bundle, is_bundle, unbundle

T = TypeVar("T")
Answer = Callable[[Message, Context], Message]
ON_A_GPU = 100
"""Clients that train together there unless told otherwise: what they need of its memory grows with them."""
PackedClients = Mapping[int, tuple[Message, Context]]
"""Seat on the node -> what its client was sent, and its context."""


def answer_for_all(message: Message, context: Context, answer: Answer) -> Message:
    """Answer a bundle for each client that it is for; a Flower mod. Any other message is answered as ever."""
    if not message.has_content() or not is_bundle(message.content):
        return answer(message, context)
    config = ClientConfig.from_flower(context.run_config)
    seats = {
        seat: (_message_for(message, part), _context_for(seat, context, config))
        for seat, part in unbundle(message.content).items()
        if isinstance(part, RecordDict)
    }
    at_once = clients_at_once(config, len(seats))
    if message.metadata.message_type == MessageType.TRAIN and at_once > 1:
        replies = _trained_together(message, context, seats, at_once)
    else:
        replies = {seat: _attempt(answer, *own) for seat, own in seats.items()}
    for seat, (_, own) in seats.items():
        _keep_state(seat, own, context)
    told: dict[int, Part] = {
        seat: reply if isinstance(reply, str) else reply.content for seat, reply in replies.items()
    }
    return Message(bundle(told), reply_to=message)


def clients_at_once(config: ClientConfig, clients: int) -> int:
    """Return how many train together: as many as are wished, or else some on a GPU, and on a CPU each alone."""
    usual = ON_A_GPU if prepare_device(config.device).type == "cuda" else 1
    return min(config.clients_at_once or usual, clients)


def _trained_together(
    message: Message, context: Context, seats: PackedClients, at_once: int
) -> dict[int, Message | str]:
    begun = {seat: _attempt(withhold_errors(TrainingJob), *own) for seat, own in seats.items()}
    jobs = {seat: job for seat, job in begun.items() if isinstance(job, TrainingJob)}
    replies: dict[int, Message | str] = {seat: told for seat, told in begun.items() if isinstance(told, str)}
    trained = _attempt(withhold_errors(lambda _, __: run_batched(jobs, at_once)), message, context)
    if isinstance(trained, str):
        return replies | dict.fromkeys(jobs, trained)
    for seat, job in jobs.items():
        finish = withhold_errors(lambda _, __, job=job, own=trained[seat]: job.reply(own))  # type: ignore[misc]
        replies[seat] = _attempt(finish, *seats[seat])
    return replies


def _attempt(do: Callable[..., T], *arguments: object) -> T | str:
    """Return what comes of it, or what Flower would say of the error: of one client, not of the whole node."""
    try:
        return do(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _message_for(message: Message, part: RecordDict) -> Message:
    """Return what one client was sent. (Flower lets only servers make messages that answer none.)"""
    own = copy(message)
    own.content = part
    return own


def _context_for(seat: int, context: Context, config: ClientConfig) -> Context:
    """Return the context of the client on a seat."""
    node = NodeConfig.from_flower(context.node_config)
    if node.partition_id is None or node.num_partitions is None:
        raise ConfigError(
            f"clients-per-node: got {config.clients_per_node}; a node with data of its own is one client, use 1"
        )
    if node.name is not None:
        raise ConfigError(
            f"clients-per-node: got {config.clients_per_node}; '{node.name}' names one client, leave it out"
        )
    if not 0 <= seat < config.clients_per_node:
        raise ConfigError(f"clients-per-node: got {config.clients_per_node}; the message is for seat {seat}")
    place = {
        "partition-id": node.partition_id * config.clients_per_node + seat,
        "num-partitions": node.num_partitions * config.clients_per_node,
    }
    kept = {name.removeprefix(_prefix(seat)): r for name, r in context.state.items() if name.startswith(_prefix(seat))}
    return Context(
        context.run_id, context.node_id, dict(context.node_config) | place, RecordDict(kept), context.run_config
    )


def _keep_state(seat: int, own: Context, context: Context) -> None:
    for name in [name for name in context.state if name.startswith(_prefix(seat))]:
        del context.state[name]
    for name, record in own.state.items():
        context.state[_prefix(seat) + name] = record


def _prefix(seat: int) -> str:
    return f"seat-{seat}/"
