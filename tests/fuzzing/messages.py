"""The messages between server and clients, valid and spoilt, and the readers of each kind."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from disue.covariance import full_size, triangle_size
from disue.errors import DisueError, WireError
from disue.models import build_model
from disue.npy import decode_npy
from disue.privacy.secagg import new_private_key, public_key, to_words
from disue.signature import Signature, SignatureParts
from disue.source import client_hash
from disue.tasks import DataSummary, ImageClassification
from disue.wire import (
    CompareReply,
    CompareRequest,
    DescribeReply,
    DescribeRequest,
    EarlyReply,
    EarlyRequest,
    EvaluateReply,
    EvaluateRequest,
    FeaturesReply,
    FeaturesRequest,
    ForgetRequest,
    HelloReply,
    HelloRequest,
    KeptReply,
    MaskedReply,
    Parcels,
    PublicKeys,
    ShareRequest,
    TrainReply,
    TrainRequest,
    Turn,
    UnmaskRequest,
    error_reason,
)
from disue.wire.bundle import bundle, unbundle
from fuzzing.spoiling import NAMES, SIZES, npy, npz, spoilt_bytes
from fuzzing.target import LONGEST_LINE, Target

LIKE = build_model("mlp", (1, 2, 2), 3).state_dict()
TURN = Turn(1, 0)
KEYS = PublicKeys(*(public_key(new_private_key()) for _ in range(2)))
TASK = ImageClassification(("a", "b", "c"), (1, 2, 2), (0.5,), (0.2,))


def asked_for() -> Message:
    """Return a message that may be answered."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__["_message_id"] = "1"
    return message


def replies() -> dict[str, Message]:
    """Return a valid reply of each kind."""
    message = asked_for()
    signature = Signature(torch.ones(3), torch.ones(3, 64), torch.ones(triangle_size(64)))
    return {
        "hello": HelloReply("a", 9, -1, 0, "mlp", DataSummary(("a", "b"), (0.5,), (0.1,))).to_message(message),
        "describe": DescribeReply(torch.ones(3, 64), "0" * 16).to_message(message),
        "train": TrainReply(dict(LIKE), 9, 0.5, 3, signature, 1, digest="0" * 16).to_message(message),
        "evaluate": EvaluateReply(9, 0.5, 0.5, 0.5, 0.5, 2, 1.0, 1.0).to_message(message),
        "compare": CompareReply((0.6, 0.5, 0.4, 0.5, 0.6)).to_message(message),
        "features": FeaturesReply(replace(signature, covariance=torch.ones(3, full_size(64)))).to_message(message),
        "early": EarlyReply(
            Signature(torch.ones(3), torch.full((3, 64), 0.1), torch.full((full_size(64),), 0.01))
        ).to_message(message),
        "bundle": Message(
            bundle({0: RecordDict({"metrics": MetricRecord({"n": 1})}), 1: "it failed"}), reply_to=message
        ),
        "kept": KeptReply(KEYS, torch.ones(1, 8), "0" * 16).to_message(message),
        "parcels": Parcels(TURN, {"a": b"1", "b": b"2"}).to_message(message),
        "masked": MaskedReply(TURN, to_words(torch.ones(5).double())).to_message(message),
    }


def requests() -> dict[str, Message]:
    """Return a valid request of each kind."""
    state = dict(LIKE)
    return {
        "hello": HelloRequest().to_message(1),
        "describe": DescribeRequest("subspace", TASK, "0" * 16).to_message(1),
        "train": TrainRequest(
            state, 1, (state,), state, True, True, True, "diary", "0" * 16, state, task=TASK
        ).to_message(1),
        "evaluate": EvaluateRequest(state, 1, state, torch.zeros(3), task=TASK).to_message(1),
        "compare": CompareRequest(state, state, 1, task=TASK).to_message(1),
        "features": FeaturesRequest(state, 1, task=TASK).to_message(1),
        "early": EarlyRequest(64, True, 1, task=TASK).to_message(1),
        "forget": ForgetRequest("0" * 16).to_message(1),
        "bundle": Message(bundle({0: RecordDict({"arrays": ArrayRecord()}), 1: RecordDict()}), 1, "train"),
        "share": ShareRequest(TURN, {"a": KEYS, "b": KEYS}, 3).to_message(1),
        "mask": Parcels(TURN, {"a": b"1", "b": b"2"}).to_request(1),
        "unmask": UnmaskRequest(TURN, ["a"], ["b"]).to_message(1),
    }


WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9)
NUMBERS = st.one_of(WHOLE, st.floats())
TEXTS = NAMES.map(lambda name: name.encode(errors="replace").decode())
METRICS = st.one_of(NUMBERS, st.lists(WHOLE, max_size=3), st.lists(st.floats(), max_size=3))
SETTINGS = st.one_of(
    METRICS,
    TEXTS,
    st.booleans(),
    st.binary(max_size=4),
    st.lists(TEXTS, max_size=3),
    st.lists(st.booleans(), max_size=2),
)


@st.composite
def tensors(draw: DrawFn) -> Array:
    """Return an array that Flower would let through, whatever it holds."""
    if draw(st.booleans()):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        kind = draw(
            st.sampled_from(["float32", "float32", "float64", "float16", "int64", "uint8", "bool", "complex64"])
        )
        fill = draw(st.sampled_from([0, 1, -1, 3e38, 1e300, float("nan"), float("inf"), 1e-30]))
        with np.errstate(all="ignore"):
            return Array(np.full(shape, fill).astype(kind))
    shape = tuple(draw(st.lists(SIZES, max_size=3)))
    stype = draw(st.sampled_from(["numpy.ndarray", "numpy.ndarray", "pickle", ""]))
    return Array(draw(TEXTS), shape, stype, draw(npy() | npz() | st.binary(max_size=50)))


def _decoded(array: Array | None) -> np.ndarray | None:
    """Return what an array holds; None if it is spoilt already."""
    try:
        return None if array is None else decode_npy(array.data).astype(np.float32)
    except ValueError:
        return None


@st.composite
def spoilt_arrays(draw: DrawFn, record: ArrayRecord) -> ArrayRecord:
    """Return a record of arrays with some changed, gone, new, or full of another number."""
    arrays = dict(record.items())
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*arrays, "new"]) | TEXTS)
        kind = draw(st.sampled_from(["other", "gone", "numbers", "bytes"]))
        if kind == "gone":
            arrays.pop(name, None)
        elif kind == "numbers" and (known := _decoded(arrays.get(name))) is not None:
            values = known
            fill = draw(st.sampled_from([0.0, 1e30, -3e38, 3e38, float("nan"), 1e-40]))
            if draw(st.booleans()) and values.size:
                values.reshape(-1)[draw(st.integers(0, values.size - 1))] = fill
            else:
                values[...] = fill
            arrays[name] = Array(values)
        elif kind == "bytes" and name in arrays:
            own = arrays[name]
            arrays[name] = Array(own.dtype, own.shape, own.stype, draw(spoilt_bytes(own.data)))
        else:
            arrays[name] = draw(tensors())
    return ArrayRecord(arrays)


@st.composite
def spoilt_content(draw: DrawFn, content: RecordDict) -> RecordDict:
    """Return what a message may hold, spoilt."""
    made: dict[str, Any] = dict(content.items())
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*made, "arrays", "metrics", "config", "signature", "new"]))
        record = made.get(key)
        if draw(st.integers(0, 7)) == 0:
            made.pop(key, None)
        elif isinstance(record, ArrayRecord):
            made[key] = draw(spoilt_arrays(record))
        elif isinstance(record, MetricRecord | ConfigRecord):
            values = METRICS if isinstance(record, MetricRecord) else SETTINGS
            own = dict(record.items())
            name = draw(st.sampled_from([*own, "new"]))
            own.pop(name, None)
            if draw(st.integers(0, 7)):
                own[name] = draw(values)
            made[key] = type(record)(own)
        else:
            made[key] = draw(
                st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord(), MetricRecord({"num-examples": 3})])
            )
    return RecordDict(made)


def wire_targets() -> list[Target]:
    """Return the readers of messages."""
    read: dict[str, Callable[[Message], object]] = {
        "hello": HelloReply.from_message,
        "describe": DescribeReply.from_message,
        "train": lambda message: TrainReply.from_message(
            message, LIKE, asked=SignatureParts(3, "all"), num_candidates=2
        ),
        "evaluate": EvaluateReply.from_message,
        "compare": CompareReply.from_message,
        "features": lambda message: FeaturesReply.from_message(message, 3, dict(LIKE)),
        "early": lambda message: EarlyReply.from_message(message, (3, 64), True),
        "bundle": lambda message: unbundle(message.content),
        "kept": lambda message: KeptReply.from_message(message, 8),
        "parcels": lambda message: Parcels.from_message(message, TURN, ["a", "b"]),
        "masked": lambda message: MaskedReply.from_message(message, TURN, 5),
    }
    asked: dict[str, Callable[[Message], object]] = {
        "hello": HelloRequest.from_message,
        "describe": DescribeRequest.from_message,
        "train": TrainRequest.from_message,
        "evaluate": EvaluateRequest.from_message,
        "compare": CompareRequest.from_message,
        "features": FeaturesRequest.from_message,
        "early": EarlyRequest.from_message,
        "forget": ForgetRequest.from_message,
        "bundle": lambda message: unbundle(message.content),
        "share": ShareRequest.from_message,
        "mask": Parcels.from_request,
        "unmask": UnmaskRequest.from_message,
    }

    def reply(kind: str) -> Callable[[RecordDict], None]:
        def feed(content: RecordDict) -> None:
            message = Message(content, reply_to=asked_for())
            try:
                read[kind](message)
            except WireError:
                raise
            except DisueError as error:  # the server is ready for a WireError only
                raise AssertionError(type(error)) from error

        return feed

    def request(kind: str) -> Callable[[RecordDict], None]:
        def feed(content: RecordDict) -> None:
            if "config" in content.config_records:
                content.config_records["config"]["source-hash"] = client_hash()
            asked[kind](Message(content, 1, "train"))

        return feed

    def reason(text: str) -> None:
        line = error_reason(Message(Error(2, text), reply_to=asked_for()))
        assert line.isprintable(), repr(line)
        assert len(line) <= LONGEST_LINE

    said = st.one_of(
        TEXTS,
        st.text(),
        st.builds("<class '{}.{}'>:<'{}'>".format, TEXTS, TEXTS, TEXTS),
        st.builds("{}\nException ClientAppException occurred. Message: {}\n'>".format, TEXTS, TEXTS),
    )
    return [
        *(
            Target(f"reply-{kind}", spoilt_content(m.content), reply(kind), 5 if kind == "train" else 6)
            for kind, m in replies().items()
        ),
        *(Target(f"request-{kind}", spoilt_content(m.content), request(kind), 2) for kind, m in requests().items()),
        Target("error-reply", said, reason, 6),
    ]
