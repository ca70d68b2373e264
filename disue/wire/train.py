"""Local training: where to start, and what came out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from disue.errors import WireError
from disue.models import State, flatten
from disue.objective import PLAIN, LocalObjective
from disue.signature import Signature
from disue.task import Task
from disue.wire.arrays import read_optional_state, read_state, to_record
from disue.wire.reading import (
    integer,
    make_config,
    number,
    read_config,
    read_metrics,
    read_objective,
    read_task,
    setting,
)


@dataclass(frozen=True)
class TrainRequest:
    """Phase L: start here and train.

    Attributes
    ----------
    start : State or None
        Where to start; None: from the chosen candidate.
    server_round : int
    candidates : tuple of State
        Models that the client chooses from, by the loss on its training data.
    universal : State or None
        The universal expert, where the signature needs it and it is not the start itself.
    signature : bool
        Whether the reply should carry a signature.
    objective : LocalObjective
    task : Task or None
        None: the client knows it from the run config.
    """

    start: State | None
    server_round: int
    candidates: tuple[State, ...] = ()
    universal: State | None = None
    signature: bool = False
    objective: LocalObjective = PLAIN
    task: Task | None = None

    def to_message(self, node_id: int, record: Callable[[State], ArrayRecord] = to_record) -> Message:
        """Return the request for one node; without a start the record ``arrays`` is the first candidate.

        ``record`` makes records of models; requests with the same models can share them (`Records`).
        """
        first, *others = self.candidates if self.start is None else (self.start, *self.candidates)
        config = make_config(self.server_round, self.objective, self.task, signature=self.signature)
        content = RecordDict({"arrays": record(first), "config": config})
        config["candidates"] = len(self.candidates)
        config["start-from-choice"] = self.start is None
        for i, state in enumerate(others):
            content[f"candidate-{i}"] = record(state)
        if self.universal is not None:
            content["universal"] = record(self.universal)
        return Message(content, node_id, MessageType.TRAIN, group_id=str(self.server_round))

    @classmethod
    def from_message(cls, message: Message) -> "TrainRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        from_choice, count = setting(config, "start-from-choice", bool), setting(config, "candidates", int)
        first = read_state(message, "arrays")
        others = tuple(read_state(message, f"candidate-{i}") for i in range(count - from_choice))
        return cls(
            start=None if from_choice else first,
            server_round=setting(config, "server-round", int),
            candidates=(first, *others) if from_choice else others,
            universal=read_optional_state(message, "universal"),
            signature=setting(config, "signature", bool),
            objective=read_objective(config),
            task=read_task(config),
        )


@dataclass(frozen=True)
class TrainReply:
    """The trained model and what goes with it.

    ``choice`` is the candidate that the client chose; ``train_loss`` is None where it is kept back.
    """

    state: State
    num_examples: int
    train_loss: float | None
    steps: int
    signature: Signature | None = None
    choice: int | None = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        metrics = MetricRecord({"num-examples": self.num_examples, "steps": self.steps})
        if self.train_loss is not None:
            metrics["train-loss"] = self.train_loss
        if self.choice is not None:
            metrics["choice"] = self.choice
        content = RecordDict({"arrays": to_record(self.state), "metrics": metrics})
        if self.signature is not None:
            content["signature"] = to_record(
                {field.name.replace("_", "-"): getattr(self.signature, field.name) for field in fields(Signature)}
            )
        return Message(content, reply_to=reply_to)

    @classmethod
    def from_message(
        cls,
        message: Message,
        like: State,
        wants_signature: bool,
        num_candidates: int = 0,
        max_examples: int | None = None,
    ) -> "TrainReply":
        """Read and check the reply.

        Raises
        ------
        WireError
            If names, shapes or types differ from ``like``, a value is not finite, ``num-examples`` is not a
            positive integer or above ``max_examples``, the signature is missing or counts more examples, or the
            choice is not one of the candidates.
        """
        state = read_state(message, "arrays")
        _check_state(state, like)
        metrics = read_metrics(message)
        num_examples = integer(metrics, "num-examples", at_least=1, at_most=max_examples)
        tensors = read_state(message, "signature") if wants_signature else None
        choice = integer(metrics, "choice", at_least=0) if num_candidates else None
        if choice is not None and choice >= num_candidates:
            raise WireError(f"choice is {choice}; there were {num_candidates} candidates")
        return cls(
            state=state,
            num_examples=num_examples,
            train_loss=number(metrics, "train-loss") if "train-loss" in metrics else None,
            steps=integer(metrics, "steps", at_least=0),
            signature=None if tensors is None else _read_signature(tensors, like, num_examples),
            choice=choice,
        )


def _read_signature(tensors: State, like: State, num_examples: int) -> Signature:
    try:
        signature = Signature(**{field.name: tensors[field.name.replace("_", "-")] for field in fields(Signature)})
    except KeyError as error:
        raise WireError(f"the signature lacks {error}") from None
    except ValueError as error:
        raise WireError(str(error)) from None
    if signature.prototypes.shape != like["head.weight"].shape:
        raise WireError(
            f"the signature's prototypes are {tuple(signature.prototypes.shape)}; "
            f"expected {tuple(like['head.weight'].shape)} (classes, features)"
        )
    if float(signature.label_counts.sum()) > num_examples:
        raise WireError(f"the signature counts more than the {num_examples} examples")
    return signature


def _check_state(state: State, like: State) -> None:
    if state.keys() != like.keys():
        raise WireError(f"the model's parameters differ: {sorted(state.keys() ^ like.keys())}")
    for name, tensor in state.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            raise WireError(
                f"parameter {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"expected {like[name].dtype} {tuple(like[name].shape)}"
            )
    if not _is_finite(flatten(list(state.values()))):  # a look at all together takes a fraction of one at each
        name = next(name for name, tensor in state.items() if not _is_finite(tensor))
        raise WireError(f"parameter {name} has values that are not finite")


def _is_finite(tensor: Tensor) -> bool:
    """In a tenth of the time of a look at each value; where one is not a number, both ends are not."""
    return all(math.isfinite(end) for end in torch.aminmax(tensor))
