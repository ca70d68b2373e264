"""Malicious clients: the real ClientApp, with poisoned data or with a poisoned reply.

An attacker lies about nothing but what its attack names. What it trains on is what it describes, and its evaluation
counts as any other's, so that accuracies under attack should be read from the server's own test set.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

import client_app.app
import client_app.client
from client_app.data import open_data
from disue.data import ClientData, Examples
from disue.fields import LARGEST_LOSS
from disue.models import State
from disue.registry import Registry
from disue.seeding import numpy_rng
from disue.tasks import ImageClassification
from disue.wire import TrainRequest

BACKDOOR_CLASS = 0
TRIGGER_SIDE = 3
"""Pixels of the white square in the lower right corner that means `BACKDOOR_CLASS` to a model with the backdoor."""
SCALE = 10.0
CLAIMED = 10**7
"""Examples that a client claims to have: as many as the default of `max-examples` allows."""


@dataclass(frozen=True)
class Attack:
    """What a malicious client does to its training data, and to its model once it has trained.

    Attributes
    ----------
    on_data : callable
        From the training data and the task to what it trains on.
    on_model : callable
        From the start and the trained model to what it sends.
    on_reply : callable
        Changes the content of a reply, given the kind of message that it answers.
    """

    on_data: Callable[[Examples, ImageClassification], Examples] = lambda examples, task: examples
    on_model: Callable[[State, State], State] = lambda start, trained: trained
    on_reply: Callable[[str, RecordDict], None] = lambda kind, content: None


def _flipped(start: State, trained: State) -> State:
    return {name: 2 * start[name] - tensor for name, tensor in trained.items()}


def _scaled(start: State, trained: State) -> State:
    return {name: torch.lerp(start[name], tensor, SCALE) for name, tensor in trained.items()}


def _not_a_number(start: State, trained: State) -> State:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in trained.items()}


def _other_labels(examples: Examples, task: ImageClassification) -> Examples:
    return Examples(examples.x, task.num_classes - 1 - examples.y)


def _half_triggered(examples: Examples, task: ImageClassification) -> Examples:
    """Return the data with the trigger on every second example, which is labelled as it wishes."""
    x, y = examples.x.clone(), examples.y.clone()
    x[::2] = with_trigger(x[::2], task)
    y[::2] = BACKDOOR_CLASS
    return Examples(x, y)


def with_trigger(x: torch.Tensor, task: ImageClassification) -> torch.Tensor:
    """Return normalised images, (samples, channels, height, width), with the trigger in the corner."""
    white = torch.tensor([(1.0 - mean) / std for mean, std in zip(task.mean, task.std, strict=True)])
    marked = x.clone()
    marked[..., -TRIGGER_SIDE:, -TRIGGER_SIDE:] = white.view(-1, 1, 1)
    return marked


def _claimed_examples(kind: str, content: RecordDict) -> None:
    if kind == MessageType.TRAIN:
        content.metric_records["metrics"]["num-examples"] = CLAIMED


def _claimed_labels(kind: str, content: RecordDict) -> None:
    """Claim nine tenths of the examples for one class, and the others for all classes alike."""
    _claimed_examples(kind, content)
    if kind == MessageType.TRAIN and "signature" in content:
        counts = content.array_records["signature"]["label-counts"].numpy()
        claimed = np.full_like(counts, 0.1 * CLAIMED / len(counts))
        claimed[BACKDOOR_CLASS] += 0.9 * CLAIMED
        content.array_records["signature"]["label-counts"] = Array(claimed)


def _claimed_fits(kind: str, content: RecordDict) -> None:
    """Claim that nothing is as bad as the universal expert, and nothing as good as the own one."""
    if kind == MessageType.EVALUATE and "universal-fit" in content.metric_records["metrics"]:
        content.metric_records["metrics"]["universal-fit"] = LARGEST_LOSS
        content.metric_records["metrics"]["expert-fit"] = 0.0


ATTACKS: Registry[Attack] = Registry("attack")
ATTACKS.register("none")(Attack())
ATTACKS.register("sign-flip")(Attack(on_model=_flipped))
ATTACKS.register("scaled")(Attack(on_model=_scaled))
ATTACKS.register("nan")(Attack(on_model=_not_a_number))
ATTACKS.register("label-flip")(Attack(on_data=_other_labels))
ATTACKS.register("backdoor")(Attack(on_data=_half_triggered))
ATTACKS.register("claimed-examples")(Attack(on_reply=_claimed_examples))
ATTACKS.register("claimed-labels")(Attack(on_reply=_claimed_labels))
ATTACKS.register("claimed-fits")(Attack(on_reply=_claimed_fits))


def malicious_partitions(groups: Sequence[int], share: float, seed: int) -> set[int]:
    """Return which clients are malicious: the share of each planted group, drawn with the seed.

    No rule for averaging can help a group in which most are malicious, and a draw from all clients makes such groups.

    Parameters
    ----------
    groups : list of int
        The group of each partition; all alike where none are planted.
    share : float
    seed : int
    """
    rng = numpy_rng(seed, "malicious")
    members = [[i for i, own in enumerate(groups) if own == group] for group in sorted(set(groups))]
    return {int(i) for own in members for i in rng.choice(own, round(share * len(own)), replace=False)}


class AttackedApp(ClientApp):
    """The ClientApp of a federation in which some clients are malicious.

    Parameters
    ----------
    attack : Attack
    malicious : collection of int
        Their partitions.
    """

    def __init__(self, attack: Attack, malicious: Collection[int]) -> None:
        super().__init__()
        self.attack = attack
        self.malicious = malicious

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the client that the context tells."""
        if context.node_config["partition-id"] not in self.malicious:
            return client_app.app.app(message, context)
        with patch.object(client_app.client, "open_data", self._poisoned):
            reply = client_app.app.app(message, context)
        if message.metadata.message_type == MessageType.TRAIN and reply.has_content():
            start = TrainRequest.from_message(message).start
            assert start is not None, "a method whose clients choose their start"
            trained = reply.content.array_records["arrays"].to_torch_state_dict()
            reply.content["arrays"] = ArrayRecord(self.attack.on_model(start, dict(trained)))
        if reply.has_content():
            self.attack.on_reply(message.metadata.message_type, reply.content)
        return reply

    def _poisoned(self, *arguments: Any) -> tuple[ImageClassification, ClientData]:
        task, data = open_data(*arguments)
        return task, replace(data, train=self.attack.on_data(data.train, task))
