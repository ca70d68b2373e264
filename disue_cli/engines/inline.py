"""The inline engine: the very same ServerApp and ClientApp in this process, through an in-process Grid."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import flwr.common.logger  # noqa: F401  (it sets the level that is changed here)
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app
from disue.errors import ConfigError
from server_app.config import RunConfig
from server_app.run import execute

Row = dict[str, Any]
RUN_ID = 1
FIRST_NODE_ID = 1000


def run_inline(config: RunConfig, num_clients: int, on_round: Callable[[Row], None] | None = None) -> Row:
    """Run the app in this process and return the contents of ``summary.json``.

    Parameters
    ----------
    config : RunConfig
    num_clients : int
    on_round : callable, optional
        Called with each row of ``metrics.jsonl``.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    nodes = simulated_nodes(nodes_for(config, num_clients))
    return execute(config, InlineGrid(app, config.to_flower(), nodes), on_round)


def nodes_for(config: RunConfig, num_clients: int) -> int:
    """Return how many nodes so many clients sit on; raise `ConfigError` if a node would have free seats."""
    nodes, left = divmod(num_clients, config.clients_per_node)
    if left:
        raise ConfigError(
            f"clients-per-node: got {config.clients_per_node}; {num_clients} clients cannot fill the nodes"
        )
    return nodes


class InlineGrid(Grid):
    """A Grid whose nodes are function calls.

    Messages are answered one after the other, in the order in which they were pushed, when they are pulled. A
    client that raises gives an error reply, as on Flower's own engines.

    Parameters
    ----------
    client_app : ClientApp
        Answers for every node.
    run_config : dict
        The app's run config, as every client sees it.
    node_configs : list of dict
        One node each.

    Attributes
    ----------
    contexts : dict of int to Context
        The nodes that are there, by their ids.
    waiting : dict of str to Message
        What was pushed and is not answered yet, by message id.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: dict[str, bool | float | int | str],
        node_configs: list[dict[str, object]],
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, SUPERLINK_NODE_ID
        self._client_app = client_app
        self._run = Run.create_empty(RUN_ID)
        self.contexts = {
            FIRST_NODE_ID + i: Context(RUN_ID, FIRST_NODE_ID + i, node_config, RecordDict(), dict(run_config))  # type: ignore[arg-type]
            for i, node_config in enumerate(node_configs)
        }
        self.waiting: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return all node ids."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until their replies are pulled."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            self.waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the messages."""
        return [self.answer(self.waiting.pop(message_id)) for message_id in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answer the messages one by one, as they are asked for; after ``timeout`` seconds the others get no reply."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        return self._replies(list(self.push_messages(messages)), deadline)

    def _replies(self, sent: list[str], deadline: float) -> Iterator[Message]:
        for message_id in sent:
            if time.monotonic() > deadline:
                del self.waiting[message_id]
            else:
                yield from self.pull_messages([message_id])

    def answer(self, message: Message) -> Message:
        """Return what a node replies."""
        context = self.contexts[message.metadata.dst_node_id]
        try:
            reply = self._client_app(message, context)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        reply.metadata.__dict__["_message_id"] = uuid4().hex
        return reply


def simulated_nodes(num_clients: int) -> list[dict[str, object]]:
    """Return the node configs that Flower's own simulation gives."""
    return [{"partition-id": i, "num-partitions": num_clients} for i in range(num_clients)]
