"""Drawn schedules of faults: clients that fail, hang, lie, and come and go; and a grid over which one happens.

A schedule is a number, from which everything follows: how many clients and rounds, the method, who does what when. Its
run is a real one but for its clients, which add a number to the model that they are sent instead of training.
"""

import copy
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Error, Message, MessageType, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from disue.covariance import triangle
from disue.models import State
from disue.naming import client_name
from disue.signature import CovarianceOf, Signature, SignatureParts, told_beside_updates
from disue.wire import (
    CompareReply,
    DescribeReply,
    EarlyReply,
    EarlyRequest,
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    TrainReply,
    TrainRequest,
)
from disue.wire.compare import SHARES
from disue_cli.engines.inline import RUN_ID, InlineGrid
from server_app.config import RunConfig
from server_app.stopping import ask_to_stop

BROKEN: dict[str, Callable[[RecordDict], object]] = {
    "not finite": lambda content: _spoil(content, lambda state: state | {HEAD: state[HEAD] * float("nan")}),
    "infinite": lambda content: _spoil(content, lambda state: state | {HEAD: state[HEAD] + float("inf")}),
    "another shape": lambda content: _spoil(content, lambda state: state | {HEAD: state[HEAD][1:]}),
    "another type": lambda content: _spoil(content, lambda state: state | {HEAD: state[HEAD].double()}),
    "a parameter less": lambda content: _spoil(content, lambda state: {HEAD: state[HEAD]}),
    "a parameter more": lambda content: _spoil(content, lambda state: state | {"more": state[HEAD]}),
    "no model": lambda content: content.pop("arrays"),
    "no numbers": lambda content: content.pop("metrics"),
    "no example": lambda content: content["metrics"].update({"num-examples": 0}),
    "examples below zero": lambda content: content["metrics"].update({"num-examples": -3}),
    "half an example": lambda content: content["metrics"].update({"num-examples": 0.5}),
    "a list of examples": lambda content: content["metrics"].update({"num-examples": [1, 2]}),
    "a loss that is none": lambda content: content["metrics"].update({"train-loss": float("nan")}),
}
"""What may be wrong with an update."""
ERRORS = {
    "fails": ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    "crashes": ErrorCode.CLIENT_APP_CRASHED,
    "is gone": ErrorCode.NODE_UNAVAILABLE,
}
ODD = (
    "hangs",
    "late",
    "under another's name",
    "twice",
    "also an earlier answer",
    "an earlier answer",
    "a stranger, too",
)
TRAINING = (*BROKEN, *ERRORS, *ODD)
EVALUATION = ("an accuracy above one", *ERRORS, *ODD)
DESCRIPTION = ("no description", *ERRORS, *ODD)
HEAD = "head.weight"
STRANGER = 77


class Killed(BaseException):
    """The process of the server was killed."""


@dataclass
class Attempt:
    """One attempt of a round as it was, to compare with what the run says.

    Attributes
    ----------
    server_round, asked : int
    updates : dict of client to tuple
        Of every client whose update is to be used, its number of examples and what it added to the model.
    rejected : int
        Clients of which something came that is not to be used, and nothing else.
    """

    server_round: int
    asked: int
    updates: dict[str, tuple[int, float]] = field(default_factory=dict)
    rejected: int = 0


class Schedule:
    """What happens in a run, drawn from a number."""

    def __init__(self, number: int) -> None:
        draw = random.Random(number)
        self.number = number
        self.clients = draw.randint(2, 6)
        self.rounds = draw.randint(2, 4)
        self.rate = draw.choice([0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
        self.kinds = draw.sample(TRAINING, draw.choice([1, 3, len(TRAINING)]))
        self.end = draw.choices(["", "killed", "stopped"], [8, 1, 1])[0]
        self.end_round = draw.randint(1, self.rounds)
        self.values: dict[str, Any] = {
            "method": draw.choices(["fedavg", "disue", "ifca", "flhc"], [7, 3, 1, 1])[0],
            "num-server-rounds": self.rounds,
            "fraction-train": draw.choice([1.0, 1.0, 0.6]),
            "min-success-fraction": draw.choice([0.3, 0.5, 1.0]),
            "evaluate-every": draw.randint(1, 2),
            "num-clusters": min(2, self.clients // 2),
            "seed": number,
        }

    def fault(self, name: str, kind: str, attempt: int) -> str:
        """Return what is wrong with a client when it is asked for something; nothing most times."""
        draw = random.Random(f"{self.number}/{name}/{kind}/{attempt}")
        faults = {MessageType.TRAIN: self.kinds, MessageType.EVALUATE: EVALUATION}.get(kind, DESCRIPTION)
        return draw.choice(faults) if draw.random() < self.rate else ""

    def move(self, node_id: int, look: int) -> tuple[str, int]:
        """Return what a node does when the server looks for nodes, and after how many looks it is as before."""
        draw = random.Random(f"{self.number}/{node_id}/{look}")
        if draw.random() >= self.rate / 4:
            return "", 0
        return draw.choice(["leaves", "is replaced", "falls silent"]), draw.randint(1, 3)

    def after_round(self, directory: Path) -> Callable[[dict[str, Any]], None]:
        """Return what is called after every round and may end the run."""

        def after(row: dict[str, Any]) -> None:
            if row["round"] == self.end_round and self.end == "killed":
                raise Killed
            if row["round"] == self.end_round and self.end == "stopped":
                ask_to_stop(directory)

        return after


class FaultyGrid(InlineGrid):
    """A grid over which a schedule happens. Who says nothing is not waited for.

    Parameters
    ----------
    config : RunConfig
    schedule : Schedule
    faults : bool (default: True)
        False: all are well.

    Attributes
    ----------
    attempts : list of Attempt
    """

    def __init__(self, config: RunConfig, schedule: Schedule, faults: bool = True) -> None:
        count = schedule.clients
        nodes: list[dict[str, object]] = [{"partition-id": i, "num-partitions": count} for i in range(count)]
        super().__init__(self._client(), config.to_flower(), nodes)
        self.covariance = told_beside_updates(config)
        self.schedule = schedule
        self.faults = faults
        self.attempts: list[Attempt] = []
        self._looks = 0
        self._back: dict[int, list[Context]] = {}
        self._silent: dict[int, int] = {}
        self._late: list[Message] = []
        self._earlier: dict[int, Message] = {}

    def _client(self) -> ClientApp:
        app = ClientApp()

        @app.query()
        def hello(message: Message, context: Context) -> Message:
            name = client_name(context.node_config)
            return HelloReply(name, examples_of(name), 0, self.schedule.clients, "mlp").to_message(message)

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            number = int(client_name(context.node_config).removeprefix("client-"))
            signature = torch.zeros(10, 65)
            signature[0, number % 2] = 1.0
            return DescribeReply(signature).to_message(message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            name, request = client_name(context.node_config), TrainRequest.from_message(message)
            start = request.candidates[0] if request.start is None else request.start
            amount = self._added(name)
            return TrainReply(
                state={key: tensor + amount for key, tensor in start.items()},
                num_examples=examples_of(name),
                train_loss=1.0,
                steps=1,
                signature=_signature(name, start, self.covariance if request.covariance else "")
                if request.signature
                else None,
                choice=0 if request.candidates else None,
            ).to_message(message)

        @app.query("early")
        def early(message: Message, context: Context) -> Message:
            request = EarlyRequest.from_message(message)
            own = _signature(client_name(context.node_config), {HEAD: torch.zeros(10, request.most)}, "")
            varying = triangle(torch.eye(request.most) / (2 * request.most)) if request.covariance else None
            return EarlyReply(replace(own, covariance=varying)).to_message(message)

        @app.query("compare")
        def compare(message: Message, context: Context) -> Message:
            return CompareReply(tuple(1.0 + share for share in SHARES)).to_message(message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            request = EvaluateRequest.from_message(message)
            fit = 1.0 if request.compare else None
            personal = 0.75 if request.personalise else None
            return EvaluateReply(10, 0.5, 1.0, 0.6, personal, 0, fit, fit).to_message(message)

        return app

    def _added(self, name: str) -> float:
        draw = random.Random(f"{self.schedule.number}/{name}/{len(self.attempts)}")
        return draw.choice([-1.0, 1.0]) * draw.uniform(0.005, 0.01)  # none is too long beside the others

    # --- nodes that come and go ------------------------------------------------------------------------------------

    def get_node_ids(self) -> list[int]:
        """Let nodes leave and come back, and return those that are there."""
        self._looks += 1
        for context in self._back.pop(self._looks, []):
            self.contexts[context.node_id] = context
        for node_id in list(self.contexts):
            move, looks = self.schedule.move(node_id, self._looks) if self.faults else ("", 0)
            if move == "falls silent":
                self._silent[node_id] = self._looks + looks
            elif move:
                old = self.contexts.pop(node_id)
                new_id = node_id + 100 * (move == "is replaced")
                context = Context(RUN_ID, new_id, old.node_config, RecordDict(), old.run_config)
                self._back.setdefault(self._looks + looks, []).append(context)
        return list(self.contexts)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the messages of the nodes that are there and not silent."""
        reachable = [i for i in message_ids if self._is_reachable(self.waiting[i].metadata.dst_node_id)]
        return super().pull_messages(reachable)

    def _is_reachable(self, node_id: int) -> bool:
        return node_id in self.contexts and self._silent.get(node_id, 0) <= self._looks

    # --- faults ----------------------------------------------------------------------------------------------------

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return what clients answer, in a drawn order, and what they answered too late before."""
        requests = list(messages)
        sent = self.push_messages(requests)
        if not requests:
            return []
        kind = requests[0].metadata.message_type
        if kind == MessageType.TRAIN:
            self.attempts.append(Attempt(int(requests[0].metadata.group_id), len(requests)))
        batches, self._late = [[late] for late in self._late], []
        own: dict[int, str] = {}
        for request, message_id in zip(requests, sent, strict=True):
            node, fault = request.metadata.dst_node_id, ""
            replies = self.pull_messages([message_id])
            if replies and self.faults:
                fault = self.schedule.fault(self._name(node), kind, len(self.attempts))
            batch, own[node] = self._spoilt(replies, fault)
            batches.append(batch)
        random.Random(f"{self.schedule.number}/{kind}/{len(self.attempts)}").shuffle(batches)
        delivered = list(chain(*batches))
        if kind == MessageType.TRAIN:
            heard = {reply.metadata.src_node_id for reply in delivered}
            good = [self._name(node) for node in own if own[node] == "good"]
            self.attempts[-1].updates = {name: (examples_of(name), self._added(name)) for name in good}
            self.attempts[-1].rejected = sum(
                own[node] == "broken" or (own[node] == "" and node in heard) for node in own
            )
        return delivered

    def _name(self, node_id: int) -> str:
        return client_name(self.contexts[node_id].node_config) if node_id in self.contexts else ""

    def _spoilt(self, replies: list[Message], fault: str) -> tuple[list[Message], str]:
        """Return what arrives in place of a reply, and what it is: good, broken, an error or none to this request."""
        if not replies:
            return [], ""
        (reply,) = replies
        node = reply.metadata.src_node_id
        earlier = self._earlier.get(node)
        self._earlier[node] = reply
        match fault:
            case "hangs":
                return [], ""
            case "late":
                self._late.append(reply)
                return [], ""
            case "is gone":
                return [_error(reply, fault, SUPERLINK_NODE_ID)], ""
            case "fails" | "crashes":
                return [_error(reply, fault, node)], "error"
            case "under another's name":
                others = [other for other in self.contexts if other != node]
                return ([from_node(reply, others[0])] if others else []), ""
            case "twice":
                return [reply, changed(reply, lambda content: _spoil(content, _far_away))], "good"
            case "an earlier answer":
                return ([reply], "good") if earlier is None else ([earlier], "")
            case "also an earlier answer":
                return [*([earlier] if earlier else []), reply], "good"
            case "a stranger, too":
                return [reply, from_node(reply, STRANGER)], "good"
            case "an accuracy above one":
                return [changed(reply, lambda content: content["metrics"].update({"expert-accuracy": 2.0}))], "broken"
            case "no description":
                return [changed(reply, lambda content: content.clear())], "broken"
            case "":
                return [reply], "good"
        return [changed(reply, BROKEN[fault])], "broken"


def examples_of(name: str) -> int:
    """Return how many examples a client has."""
    return 20 + 10 * int(name.removeprefix("client-"))


def changed(reply: Message, change: Callable[[RecordDict], object]) -> Message:
    """Return a reply with something else in it."""
    content = copy.deepcopy(reply.content)
    change(content)
    return make_message(metadata=reply.metadata, content=content)


def from_node(reply: Message, node_id: int) -> Message:
    """Return a reply as if another node had sent it."""
    metadata = copy.copy(reply.metadata)
    metadata.__dict__["_src_node_id"] = node_id
    return make_message(metadata=metadata, content=reply.content)


def _error(reply: Message, fault: str, node_id: int) -> Message:
    return make_message(metadata=from_node(reply, node_id).metadata, error=Error(ERRORS[fault], "drawn"))


def _spoil(content: RecordDict, change: Callable[[State], State]) -> None:
    if "arrays" in content:  # an evaluation has none
        content["arrays"] = ArrayRecord(change(dict(content.array_records["arrays"].to_torch_state_dict())))


def _far_away(state: State) -> State:
    return {key: tensor + 100.0 for key, tensor in state.items()}


def _signature(name: str, start: State, covariance: CovarianceOf) -> Signature:
    classes, features = start[HEAD].shape
    number = int(name.removeprefix("client-"))
    counts = torch.zeros(classes)
    counts[[number % 2, 2 + number % 2]] = 5.0
    prototypes = torch.zeros(classes, features)
    prototypes[counts > 0, number % 2] = 1.0
    shape = SignatureParts(classes, covariance).covariance_shape(start)
    if len(shape) < 2:
        return Signature(counts, prototypes, triangle(torch.eye(features)) if shape else None)
    axes = torch.eye(features)[: shape[1]] * (counts > 0).view(-1, 1, 1)
    return Signature(counts, prototypes, axes)
