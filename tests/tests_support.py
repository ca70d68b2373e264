"""What many tests of the server's side share: client apps that misbehave, and what a run leaves."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from disue.data import RunData
from disue.models import State
from disue.naming import client_name
from disue.tasks import ImageClassification
from disue.wire import EvaluateReply, EvaluateRequest, HelloReply, TrainReply, TrainRequest
from disue_cli.engines.inline import FIRST_NODE_ID, RUN_ID, InlineGrid
from server_app.callbacks.base import RunContext
from server_app.config import RunConfig
from server_app.rows import Row, Rows
from strategies.flower import FederatedStrategy
from strategies.methods.fedavg import FedAvg
from strategies.rounds.registry import Client, ClientRegistry
from strategies.rounds.stats import Participation

ARTEFACTS_OF_TWO = {
    *("config.toml", "metrics.jsonl", "clients.csv", "teaching.csv", "summary.json", "universal.safetensors"),
    *("membership.csv", "portrait.safetensors", "portrait.json", "report.html", "gate.safetensors", "MODEL_CARD.md"),
    *("experts/expert-0.safetensors", "experts/expert-1.safetensors"),
    *("checkpoint/lock", "checkpoint/round"),
}
"""The files of a run that ended with two clusters, as `files_of` names them."""


def numbered_classes(count: int, shape: tuple[int, int, int] = (1, 4, 4)) -> ImageClassification:
    """Return the task of images in so many classes, which are normalised already."""
    return ImageClassification(tuple(map(str, range(count))), shape, (0.0,) * shape[0], (1.0,) * shape[0])


def run_context(
    directory: Path, data: RunData, clients: Sequence[Client] = (), done: Sequence[Row] = (), **settings: Any
) -> RunContext:
    """Return a run of FedAvg, as callbacks see it, in which nobody answers."""
    config = RunConfig(output_dir=str(directory), model="mlp", **settings)
    registry = ClientRegistry(config.seed)
    registry.known = clients
    strategy = FederatedStrategy(registry, Participation(config.num_server_rounds), FedAvg(config.model))
    rows, grid = Rows(data.task.metric_names, done), InlineGrid(ClientApp(), {}, [])
    return RunContext(config, grid, strategy, data, data.global_test(), torch.device("cpu"), rows)


Behaviour = Callable[[str, TrainRequest, Message], Message]


def files_of(directory: Path) -> set[str]:
    """Return the files of a run; those whose names depend on what is in them by the beginning of their names.

    ``warnings.csv`` is left out: a run without warnings has none.
    """
    paths = (
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "warnings.csv"
    )
    return {path.partition("-")[0] if path.startswith("checkpoint/") else path for path in paths}


def shifted(state: State, amount: float) -> State:
    """Return a state with every parameter moved by the same amount."""
    return {name: tensor + amount for name, tensor in state.items()}


def honest(name: str, request: TrainRequest, message: Message) -> Message:
    """Move every parameter by one; weigh by the number at the end of the name, plus one."""
    digits = "".join(filter(str.isdigit, name)) or "0"
    return TrainReply(shifted(request.start, 1.0), int(digits) + 1, 0.5, 1).to_message(message)


def answering_app(train: Behaviour = honest, on_hello: Callable[[str], None] = lambda name: None) -> ClientApp:
    """Return a ClientApp with no data: it says hello, and trains as told."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        on_hello(client_name(context.node_config))
        model = str(context.node_config.get("model", "mlp"))
        partitions = int(context.node_config.get("partitions", 0))  # type: ignore[arg-type]
        return HelloReply(client_name(context.node_config), 10, -1, partitions, model).to_message(message)

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        return train(client_name(context.node_config), TrainRequest.from_message(message), message)

    @app.evaluate()
    def test(message: Message, context: Context) -> Message:
        request = EvaluateRequest.from_message(message)
        mean = float(torch.cat([tensor.flatten() for tensor in request.universal.values()]).mean())
        share = 0.5 + math.atan(mean) / math.pi  # an accuracy that says which model it was
        return EvaluateReply(10, share, 0.0, share, share if request.personalise else None).to_message(message)

    return app


class ChangingGrid(InlineGrid):
    """An inline grid whose nodes come and go, and may be silent."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._added = 0
        self.silent: set[int] = set()
        """Nodes that are listed and do not answer; messages wait for them, as in a SuperLink."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the messages of the nodes that are not silent."""
        return super().pull_messages(
            [i for i in message_ids if self.waiting[i].metadata.dst_node_id not in self.silent]
        )

    def forget(self, node_id: int) -> Context:
        """Take a node away."""
        return self.contexts.pop(node_id)

    def bring_back(self, context: Context) -> None:
        """Connect a node again under the id that it had."""
        self.contexts[context.node_id] = context

    def add_node(self, node_config: dict[str, object]) -> int:
        """Add a node under an id that was never used, and return it."""
        self._added += 1
        node_id = 10 * FIRST_NODE_ID + self._added
        self.contexts[node_id] = Context(RUN_ID, node_id, node_config, RecordDict(), {})  # type: ignore[arg-type]
        return node_id


class RecordingGrid(InlineGrid):
    """Keeps every message that the server receives, as it was received."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.received += replies
        return replies


class KeyedGrid(ChangingGrid):
    """A grid that knows its nodes as a SuperLink does: each has a key, and a name if it was registered with its key."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.registered: dict[int, bytes] = {}
        """The keys of registered nodes."""

    def get_nodes(self) -> list[NodeInfo]:
        """Return what is known of the nodes."""
        return [
            NodeInfo(node_id=node, public_key=self.registered[node], name=f"node-{node}")
            if node in self.registered
            else NodeInfo(node_id=node, public_key=b"new at each start: %d" % node)
            for node in self.get_node_ids()
        ]


class Call(NamedTuple):
    """A call of a method: its arguments after ``self``, by name, and what it returned."""

    of: Any
    given: dict[str, Any]
    result: Any


def calls_of(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[Call]:
    """Return a list to which every call of a public method is added from now on, once it has returned."""
    assert not name.startswith("_")
    original, calls = getattr(kind, name), list[Call]()
    signature = inspect.signature(original)

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        result = original(self, *arguments, **named)
        bound = signature.bind(self, *arguments, **named)
        bound.apply_defaults()
        _, *given = bound.arguments.items()
        calls.append(Call(self, dict(given), result))
        return result

    monkeypatch.setattr(kind, name, watched)
    return calls
