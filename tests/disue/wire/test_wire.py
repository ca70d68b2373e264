import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from fuzzing.messages import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from disue.covariance import full_size, triangle_size
from disue.errors import FederationError
from disue.models import State
from disue.naming import normal_name
from disue.objective import PLAIN, LocalObjective
from disue.privacy.secagg import new_private_key, public_key
from disue.signature import NOTHING, CovarianceOf, Signature, SignatureParts
from disue.source import client_hash
from disue.tasks import DataSummary, ImageClassification
from disue.wire import (
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    FeaturesReply,
    FeaturesRequest,
    ForgetRequest,
    HelloReply,
    HelloRequest,
    KeptReply,
    PublicKeys,
    Records,
    TrainReply,
    TrainRequest,
    WireError,
    error_reason,
    message_bytes,
    reading,
)
from disue.wire.arrays import read_state, to_record
from disue.wire.reading import PROTOCOL
from disue.wire.table import fields_table


@pytest.fixture(autouse=True, scope="module")
def _identity() -> Iterator[None]:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    yield


def state(seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    return {"head.weight": torch.randn(2, 3, generator=g), "a": torch.randn(2, generator=g)}


def same(first: State | None, second: State | None) -> bool:
    if first is None or second is None:
        return first is second
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def test_a_record_is_the_one_that_flower_makes() -> None:
    tensors = state() | {"scalar": torch.tensor(3), "half": torch.ones(2, 0, dtype=torch.float16)}
    tensors |= {"strided": torch.arange(6.0).reshape(2, 3)[:, ::2], "trained": torch.nn.Parameter(torch.ones(3))}
    assert to_record(tensors) == ArrayRecord(tensors)


def reply_to() -> Message:
    return HelloRequest().to_message(5)


@pytest.mark.parametrize("universal", [None, state(1)])
def test_train_request_round_trip(universal: State | None) -> None:
    objective = LocalObjective("balanced", 0.25, second_mu=0.5, head_epochs=3)
    sent = TrainRequest(start=state(), server_round=4, universal=universal, signature=True, objective=objective)
    message = sent.to_message(7)
    got = TrainRequest.from_message(message)
    assert message.metadata.dst_node_id == 7
    assert same(got.start, sent.start)
    assert same(got.universal, universal)
    assert (got.server_round, got.signature, got.covariance, got.objective) == (4, True, False, objective)


def test_a_request_asks_for_the_covariance() -> None:
    sent = TrainRequest(start=state(), server_round=4, signature=True, covariance=True).to_message(7)
    assert TrainRequest.from_message(sent).covariance
    sent.content.config_records["config"]["covariance"] = "yes"
    with pytest.raises(WireError, match="covariance"):
        TrainRequest.from_message(sent)


def test_what_few_methods_need_is_sent_where_it_is_needed() -> None:
    train, evaluate = TrainRequest(state(), 4), EvaluateRequest(state(), 4)
    for message in (train.to_message(7), evaluate.to_message(7)):
        sent = message.content.config_records["config"]
        assert not {"second-mu", "head-epochs", "memory", "run"} & set(sent)
    assert TrainRequest.from_message(train.to_message(7)).objective == PLAIN


def test_a_request_asks_for_a_digest_and_says_of_which_run() -> None:
    sent = TrainRequest(state(), 4, digest=True, run="0" * 16)
    got = TrainRequest.from_message(sent.to_message(7))
    assert (got.digest, got.run, got.memory) == (True, "0" * 16, "")
    got = TrainRequest.from_message(TrainRequest(state(), 4, run="0" * 16).to_message(7))
    assert (got.digest, got.run) == (False, "")
    asked = DescribeRequest("subspace", run="0" * 16)
    assert DescribeRequest.from_message(asked.to_message(7)) == asked


@pytest.mark.parametrize("digest", [None, "0123456789abcdef"])
def test_a_digest_travels_with_an_update_and_with_a_description(digest: str | None) -> None:
    keys = PublicKeys(*(public_key(new_private_key()) for _ in range(2)))
    message = TrainReply(state(), 9, 0.5, 3, digest=digest).to_message(reply_to())
    assert TrainReply.from_message(message, like=state(), asked=NOTHING).digest == digest
    message = DescribeReply(torch.ones(2, 3), digest).to_message(reply_to())
    assert DescribeReply.from_message(message).digest == digest
    assert KeptReply.from_message(KeptReply(keys, digest=digest).to_message(reply_to()), 0).digest == digest


@pytest.mark.parametrize("digest", ["", "x" * 17, "a\nb", 7, ["a"]])
def test_a_digest_that_is_none_is_refused_by_name(digest: Any) -> None:
    message = TrainReply(state(), 9, 0.5, 3, digest="0").to_message(reply_to())
    message.content.config_records["config"]["digest"] = digest
    with pytest.raises(WireError, match="^digest is .*; expected printable text of 1 to 16 letters$"):
        TrainReply.from_message(message, like=state(), asked=NOTHING)


def test_who_has_a_memory_is_told_which_in_an_evaluation_too() -> None:
    sent = EvaluateRequest(state(), 3, memory="personal-model", run="0" * 16)
    got = EvaluateRequest.from_message(sent.to_message(7))
    assert (got.memory, got.run) == ("personal-model", "0" * 16)


@pytest.mark.parametrize("start", [None, state(0)])
def test_candidates_travel_with_or_without_a_start(start: State | None) -> None:
    """Without one, the first candidate is the record ``arrays``, and no model travels twice."""
    candidates = (state(1), state(2), state(3))
    message = TrainRequest(start, 4, candidates).to_message(7)
    got = TrainRequest.from_message(message)
    assert same(got.start, start)
    assert len(got.candidates) == 3
    assert all(same(*pair) for pair in zip(got.candidates, candidates, strict=True))
    assert len(message.content.array_records) == (3 if start is None else 4)
    assert "arrays" in message.content.array_records


@pytest.mark.parametrize("choice", [None, 3, -1])
def test_a_choice_must_be_one_of_the_candidates(choice: int | None) -> None:
    message = TrainReply(state(), 9, 0.5, 3, choice=choice).to_message(reply_to())
    with pytest.raises(WireError, match="choice is"):
        TrainReply.from_message(message, like=state(), asked=NOTHING, num_candidates=3)
    good = TrainReply(state(), 9, 0.5, 3, choice=2).to_message(reply_to())
    assert TrainReply.from_message(good, like=state(), asked=NOTHING, num_candidates=3).choice == 2


def test_a_second_model_travels_both_ways_and_is_checked_as_the_first() -> None:
    asked = TrainRequest.from_message(TrainRequest(state(), 4, second=state(1)).to_message(7))
    assert same(asked.second, state(1))
    assert TrainRequest.from_message(TrainRequest(state(), 4).to_message(7)).second is None
    told = TrainReply(state(), 9, 0.5, 3, second=state(2)).to_message(reply_to())
    assert same(TrainReply.from_message(told, like=state(), asked=NOTHING, second=True).second, state(2))
    assert TrainReply.from_message(told, like=state(), asked=NOTHING).second is None  # nobody asked
    other = TrainReply(state(), 9, 0.5, 3, second={"a": torch.ones(2)}).to_message(reply_to())
    with pytest.raises(WireError, match="parameters differ"):
        TrainReply.from_message(other, like=state(), asked=NOTHING, second=True)
    with pytest.raises(WireError, match="no 'second' record"):
        TrainReply.from_message(TrainReply(state(), 9, 0.5, 3).to_message(reply_to()), state(), NOTHING, second=True)


def test_descriptions_round_trip() -> None:
    assert DescribeRequest.from_message(DescribeRequest("subspace").to_message(1)) == DescribeRequest("subspace")
    sent = torch.randn(4, 3)
    assert torch.equal(DescribeReply.from_message(DescribeReply(sent).to_message(reply_to())).signature, sent)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (torch.ones(4), "expected a matrix of float32"),
        (torch.ones(4, 3, dtype=torch.int64), "is torch.int64; expected a matrix .* float32"),
        (torch.full((4, 3), float("nan")), "not finite"),
    ],
)
def test_a_malformed_description_is_refused_with_the_reason(signature: torch.Tensor, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        DescribeReply.from_message(DescribeReply(signature).to_message(reply_to()))


@pytest.mark.parametrize("prior", [None, torch.tensor([-1.0, -0.5])])
@pytest.mark.parametrize("expert", [None, state(1)])
def test_evaluate_request_round_trip(expert: State | None, prior: torch.Tensor | None) -> None:
    got = EvaluateRequest.from_message(
        EvaluateRequest(state(), 3, expert, prior, personalise=True, compare=True).to_message(7)
    )
    assert same(got.universal, state())
    assert got.expert_prior is prior if prior is None else torch.equal(got.expert_prior, prior)
    assert same(got.expert, expert)
    assert got.personalise
    assert got.compare


shapes = st.lists(st.integers(1, 4), max_size=3)


@given(
    st.dictionaries(st.text("abc.", min_size=1), shapes, min_size=1), st.integers(0, 10**6), st.booleans(), st.data()
)
@settings(max_examples=50)
def test_any_model_survives_the_wire(drawn: dict[str, list[int]], number: int, flag: bool, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 99))
    model = {name: torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for name, shape in drawn.items()}
    request = TrainRequest.from_message(TrainRequest(model, number, signature=flag).to_message(3))
    assert same(request.start, model)
    assert (request.server_round, request.signature, request.universal) == (number, flag, None)
    sent = TrainReply(model, number + 1, 0.5, number)
    assert same(TrainReply.from_message(sent.to_message(reply_to()), like=model, asked=NOTHING).state, model)


names = (
    st.text(st.characters().filter(str.isprintable), min_size=1, max_size=100)
    .map(normal_name)
    .filter(lambda name: len(name) <= 100)
)


@given(names, st.integers(1, 10**9), st.integers(-1, 50), st.integers(1, 10**6), names)
def test_hello_reply_round_trip(name: str, examples: int, group: int, partitions: int, model: str) -> None:
    sent = HelloReply(name, examples, group, partitions, model)
    assert HelloReply.from_message(sent.to_message(reply_to())) == sent


TASK = ImageClassification(("healthy", "ill"), (3, 8, 6), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


@pytest.mark.parametrize("task", [None, TASK])
def test_every_request_carries_the_task(task: ImageClassification | None) -> None:
    requests = (
        (TrainRequest, TrainRequest(state(), 1, task=task)),
        (EvaluateRequest, EvaluateRequest(state(), 1, task=task)),
        (DescribeRequest, DescribeRequest("subspace", task)),
    )
    for kind, request in requests:
        assert kind.from_message(request.to_message(3)).task == task


@given(st.lists(names, min_size=1, max_size=5, unique=True), st.lists(st.floats(0.0, 0.5), min_size=1, max_size=3))
def test_what_a_client_says_of_its_own_data_survives_the_wire(class_names: list[str], values: list[float]) -> None:
    summary = DataSummary(tuple(class_names), tuple(values), tuple(reversed(values)))
    sent = HelloReply("a", 5, -1, 0, "cnn", summary)
    assert HelloReply.from_message(sent.to_message(reply_to())) == sent


@pytest.mark.parametrize(
    ("record", "key", "value", "words"),
    [
        ("config", "name", "", "name is ''; expected printable text of 1 to 100 letters"),
        ("config", "name", "a\nb", "name is 'a\\nb'; expected printable text of 1 to 100 letters"),
        ("config", "name", "x" * 101, "name is a str of 101; expected printable text of 1 to 100 letters"),
        ("config", "class-names", "cat", "class-names is 'cat'; expected 1 to 65536 different printable texts"),
        ("config", "class-names", ["cat", "cat"], "is ['cat', 'cat']; expected 1 to 65536 different printable texts"),
        ("config", "class-names", ["cat", "\x1b[31m"], "expected printable text"),
        ("metrics", "mean", 0.5, "mean is 0.5; expected up to 3 numbers from 0 to 1"),
        ("metrics", "mean", [0.1, 0.2], "mean and std have 2 and 1 channels"),
        ("metrics", "mean", [float("nan")], "mean is nan; expected a number from 0 to 1"),
        ("metrics", "std", [0.6], "std is 0.6; expected a number from 0 to 0.5"),
    ],
)
def test_a_hello_that_cannot_be_true_is_refused(record: str, key: str, value: object, words: str) -> None:
    message = HelloReply("a", 5, -1, 0, "cnn", DataSummary(("cat",), (0.5,), (0.2,))).to_message(reply_to())
    message.content[record][key] = value  # type: ignore[index]
    with pytest.raises(WireError) as caught:
        HelloReply.from_message(message)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("<class 'disue.errors.DataError'>:<'ward-b: it isn't one'>", "DataError: ward-b: it isn't one"),
        ("<class 'ValueError'>:<'one\nlast'>", "ValueError: last"),
        ("<class 'KeyError'>:<''>", "KeyError: no reason"),
        ("<class 'ValueError'>:<'\x1b[31mred'>", "ValueError: ?[31mred"),
        ("x" * 5000, "x" * 1000),
        ("DataError: as the inline engine says it", "DataError: as the inline engine says it"),
    ],
)
def test_the_reason_that_a_supernode_gives_is_read(reason: str, expected: str) -> None:
    assert error_reason(Message(Error(2, reason), reply_to=reply_to())) == expected


@pytest.mark.parametrize("personal", [None, 0.25])
def test_evaluate_reply_round_trip(personal: float | None) -> None:
    sent = EvaluateReply(10, 0.5, 1.25, 0.75, personal, personal_steps=8, universal_fit=1.5, expert_fit=0.5)
    assert EvaluateReply.from_message(sent.to_message(reply_to())) == sent


@pytest.mark.parametrize("key", ["universal-accuracy", "expert-accuracy", "personal-accuracy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 17.0])
def test_an_accuracy_that_is_none_is_refused(key: str, value: float) -> None:
    message = EvaluateReply(10, 0.5, 1.25, 0.75, 0.25).to_message(reply_to())
    message.content.metric_records["metrics"][key] = value
    with pytest.raises(WireError, match=f"{key} is "):
        EvaluateReply.from_message(message)


def test_train_reply_round_trip() -> None:
    signature = Signature(torch.tensor([1.0, 2.0]), torch.randn(2, 3))
    sent = TrainReply(state(2), num_examples=9, train_loss=0.5, steps=3, signature=signature)
    got = TrainReply.from_message(sent.to_message(reply_to()), like=state(), asked=SignatureParts(2))
    assert same(got.state, sent.state)
    assert got.signature is not None
    assert torch.equal(got.signature.prototypes, signature.prototypes)
    assert (got.num_examples, got.train_loss, got.steps) == (9, 0.5, 3)


@pytest.mark.parametrize("features", [3, 300])
def test_the_covariance_travels_where_it_was_asked_for(features: int) -> None:
    like = {"head.weight": torch.zeros(2, features), "a": torch.zeros(2)}
    told = Signature(torch.tensor([1.0, 2.0]), torch.randn(2, features), torch.randn(triangle_size(features)))
    message = TrainReply(like, 9, 0.5, 3, told).to_message(reply_to())
    got, without = (TrainReply.from_message(message, like, SignatureParts(2, asked)).signature for asked in ("all", ""))
    assert got is not None
    assert got.covariance is not None
    assert told.covariance is not None
    assert torch.equal(got.covariance, told.covariance)
    assert without is not None
    assert without.covariance is None


def test_features_round_trip_with_a_covariance_of_all_of_them_for_each_class() -> None:
    got = FeaturesRequest.from_message(FeaturesRequest(state(), 4).to_message(7))
    assert same(got.state, state())
    assert (got.server_round, got.task) == (4, None)
    told = Signature(torch.tensor([1.0, 2.0]), torch.randn(2, 200), torch.randn(2, full_size(200)))
    read = FeaturesReply.from_message(
        FeaturesReply(told).to_message(reply_to()), 2, {"head.weight": torch.zeros(2, 200)}
    ).signature
    assert all(torch.equal(getattr(read, name), tensor) for name, tensor in vars(told).items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"covariance": torch.ones(6)}, r"covariance is \(6,\); expected \(2, 6\)"),
        ({"covariance": torch.ones(1, 6)}, "do not fit"),
        ({"prototypes": torch.ones(2, 4), "covariance": torch.ones(2, 10)}, r"are \(2, 4\); expected \(2, 3\)"),
        ({"covariance": torch.full((2, 6), 3e12)}, "covariance has values that are not finite or out of range"),
        ({"covariance": torch.ones(2, 6), "label_counts": torch.full((2,), 2e12)}, "label-counts has values"),
        ({}, "the signature lacks 'covariance'"),
    ],
)
def test_malformed_features_are_refused_with_the_reason(changes: dict[str, torch.Tensor], reason: str) -> None:
    message = Message(RecordDict({"signature": signature_record(**changes)}), reply_to=reply_to())
    with pytest.raises(WireError, match=reason):
        FeaturesReply.from_message(message, 2, {"head.weight": torch.zeros(2, 3)})


@pytest.mark.parametrize(("asked", "covariance"), [("all", torch.ones(2, 6)), ("each", torch.ones(6))])
def test_a_covariance_of_the_other_kind_is_refused(asked: CovarianceOf, covariance: torch.Tensor) -> None:
    record = signature_record(covariance=covariance)
    with pytest.raises(WireError, match="the signature's covariance is"):
        TrainReply.from_message(broken(signature=record), like=state(), asked=SignatureParts(2, asked))


def test_of_many_features_those_of_a_projection_vary() -> None:
    assert [triangle_size(features) for features in (1, 3, 128, 129, 512)] == [1, 6, 8256, 8256, 8256]


@pytest.mark.parametrize(
    ("covariance", "reason"),
    [
        (None, "the signature lacks 'covariance'"),
        (torch.ones(5), r"shapes \[\(2,\), \(2, 3\), \(5,\)\] do not fit"),
        (torch.ones(3, 3), "do not fit"),
        (torch.ones(6).double(), "'torch.float64'.* are not float32"),
        (torch.full((6,), float("nan")), "not finite"),
        (torch.full((6,), float("inf")), "not finite"),
        (torch.full((6,), 3e38), "covariance has values that are not finite or out of range; expected .*1e"),
        (torch.full((6,), -3e38), "covariance has values that are not finite or out of range; expected .*1e"),
    ],
)
def test_a_malformed_covariance_is_refused_with_the_reason(covariance: torch.Tensor | None, reason: str) -> None:
    record = signature_record() if covariance is None else signature_record(covariance=covariance)
    with pytest.raises(WireError, match=reason) as caught:
        TrainReply.from_message(broken(signature=record), like=state(), asked=SignatureParts(2, "all"))
    assert "\n" not in str(caught.value)


def test_prototypes_are_one_for_each_stratum_however_many_outputs_there_are() -> None:
    sent = TrainReply(state(), 9, 0.5, 3, Signature(torch.tensor([9.0]), torch.randn(1, 3)))
    got = TrainReply.from_message(sent.to_message(reply_to()), like=state(), asked=SignatureParts(1))
    assert got.signature is not None
    assert got.signature.prototypes.shape == (1, 3)
    with pytest.raises(WireError, match=r"prototypes are \(1, 3\); expected \(2, 3\)"):
        TrainReply.from_message(sent.to_message(reply_to()), like=state(), asked=SignatureParts(2))


def signature_record(**changes: torch.Tensor) -> ArrayRecord:
    tensors = {"label_counts": torch.ones(2), "prototypes": torch.ones(2, 3)}
    return ArrayRecord({key.replace("_", "-"): value for key, value in (tensors | changes).items()})


def garbage() -> ArrayRecord:
    """A record of one array whose bytes are none."""
    return ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", b"no array at all")})


def broken(**changes: object) -> Message:
    content: dict[str, object] = {
        "arrays": ArrayRecord(state()),
        "metrics": MetricRecord({"num-examples": 3, "train-loss": 0.1, "steps": 1}),
        "signature": signature_record(),
    }
    content |= {key.replace("_", "-"): value for key, value in changes.items()}
    return Message(RecordDict({k: v for k, v in content.items() if v is not None}), reply_to=reply_to())  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("message_changes", "reason"),
    [
        ({"arrays": None}, "no 'arrays' record"),
        ({"arrays": ArrayRecord({"a": state()["a"]})}, r"parameters differ: \['head.weight'\]"),
        ({"arrays": ArrayRecord(state() | {"a": torch.zeros(3)})}, r"parameter a is torch.float32 \(3,\)"),
        ({"arrays": ArrayRecord(state() | {"a": torch.zeros(2).double()})}, "parameter a is torch.float64"),
        (
            {"arrays": ArrayRecord(state() | {"a": torch.tensor([0.0, float("nan")])})},
            "a has values that are not finite",
        ),
        (
            {"arrays": ArrayRecord(state() | {"a": torch.tensor([0.0, float("inf")])})},
            "a has values that are not finite",
        ),
        (
            {"arrays": ArrayRecord(state() | {"a": torch.tensor([float("-inf"), 0.0])})},
            "a has values that are not finite",
        ),
        ({"metrics": None}, "no 'metrics' record"),
        ({"metrics": MetricRecord({"num-examples": [3]})}, r"num-examples is \[3\]"),
        ({"metrics": MetricRecord({"num-examples": 3, "train-loss": [0.1], "steps": 1})}, r"train-loss is \[0.1\]"),
        ({"metrics": MetricRecord({"num-examples": 3, "train-loss": 0.1, "steps": 1.5})}, "steps is 1.5"),
        ({"metrics": MetricRecord({"num-examples": 0})}, "num-examples is 0"),
        ({"metrics": MetricRecord({"num-examples": -4})}, "num-examples is -4"),
        ({"metrics": MetricRecord({"num-examples": 2.5})}, "num-examples is 2.5"),
        ({"signature": None}, "no 'signature' record"),
        ({"signature": ArrayRecord({"prototypes": torch.ones(2, 3)})}, "lacks 'label-counts'"),
        (
            {"signature": signature_record(prototypes=torch.ones(3, 4))},
            r"prototypes are \(3, 4\); expected \(2, 3\)",
        ),
        (
            {"signature": signature_record(prototypes=torch.ones(2, 5))},
            r"prototypes are \(2, 5\); expected \(2, 3\)",
        ),
        ({"signature": signature_record(label_counts=torch.zeros(2))}, "counts no example"),
        ({"signature": signature_record(prototypes=torch.full((2, 3), float("nan")))}, "not finite"),
        ({"signature": signature_record(label_counts=torch.ones(3))}, "do not fit"),
        ({"signature": signature_record(label_counts=-torch.ones(2))}, "negative or not"),
        ({"signature": signature_record(prototypes=torch.ones(2, 3).double())}, "'torch.float64'.* are not float32"),
        ({"signature": signature_record(label_counts=torch.full((2,), 3.0))}, "counts more than the 3 examples"),
        (
            {"signature": signature_record(label_counts=torch.full((2,), 3e38))},
            "label-counts has values that are not .*1e",
        ),
        ({"signature": signature_record(prototypes=torch.full((2, 3), 3e38))}, "prototypes has values that are .*1e"),
        ({"arrays": ArrayRecord(state() | {"a": torch.tensor([0.0, 3e38])})}, "parameter a has values .* out of range"),
        ({"signature": garbage()}, "the 'signature' record cannot be decoded"),
        ({"arrays": garbage()}, "the 'arrays' record cannot be decoded"),
        (
            {"metrics": MetricRecord({"num-examples": 3, "train-loss": float("nan"), "steps": 1})},
            "train-loss is nan; expected a number from 0 to 1e",
        ),
    ],
)
def test_a_malformed_update_is_refused_with_the_reason(message_changes: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        TrainReply.from_message(broken(**message_changes), like=state(), asked=SignatureParts(2))


def test_the_well_formed_one_is_not() -> None:
    TrainReply.from_message(broken(), like=state(), asked=SignatureParts(2))


def test_other_source_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [
        HelloRequest().to_message(1),
        TrainRequest(state(), 1).to_message(1),
        EvaluateRequest(state(), 1).to_message(1),
        DescribeRequest("subspace").to_message(1),
        ForgetRequest("0" * 16).to_message(1),
    ]
    servers = client_hash()[:8]
    monkeypatch.setattr(reading, "client_hash", lambda: "0123456789abcdef")
    checks = (
        HelloRequest.from_message,
        TrainRequest.from_message,
        EvaluateRequest.from_message,
        DescribeRequest.from_message,
        ForgetRequest.from_message,
    )
    said = []
    for check, message in zip(checks, messages, strict=True):
        with pytest.raises(FederationError, match="other source code") as caught:
            check(message)
        said.append(str(caught.value))
    assert said[0].startswith(
        f"this client runs other source code (01234567, protocol {PROTOCOL}) than the server "
        f"({servers}, protocol {PROTOCOL}); install the same version"
    )
    assert said[1].startswith(f"this client runs other source code (01234567, protocol {PROTOCOL}) than the server (")
    assert all(servers in line and "\n" not in line for line in said)


def test_the_number_of_the_protocol_goes_with_the_kinds_of_messages_and_their_fields() -> None:
    """Raise `PROTOCOL` where this fails, and put here what it is now."""
    fields = [line.split(" | ")[:4] for line in fields_table().splitlines()]
    asked = {
        kind: {record: sorted(own) for record, own in message.content.items()} for kind, message in requests().items()
    }
    held = sha256(json.dumps([fields, asked], sort_keys=True).encode()).hexdigest()[:16]
    assert (PROTOCOL, held) == (2, "33f092f5683636da")


@pytest.mark.parametrize(
    ("protocol", "named"),
    [
        (PROTOCOL + 1, f"{PROTOCOL + 1}"),
        (0, "0"),
        (None, "none, which is older than 1"),
        ("x\ny", "'x\\ny'"),
        ("x" * 10**6, "a str of 1000000"),
    ],
)
def test_a_client_refuses_a_server_of_another_protocol(protocol: int | str | None, named: str) -> None:
    """Whatever its source code is: that of another protocol is another, too."""
    message = HelloRequest().to_message(1)
    config = message.content.config_records["config"]
    assert config["protocol"] == PROTOCOL
    del config["protocol"]
    if protocol is not None:
        config["protocol"] = protocol
    config["source-hash"] = "another"
    with pytest.raises(FederationError) as caught:
        HelloRequest.from_message(message)
    assert str(caught.value).startswith(
        f"protocol: the server says {named}, this client {PROTOCOL}; install the same version"
    )


def test_a_request_without_config_is_refused() -> None:
    message = Message(RecordDict({"arrays": ArrayRecord(state())}), 1, "train")
    with pytest.raises(WireError, match="no 'config' record"):
        TrainRequest.from_message(message)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("ValueError: no such file", "ValueError: no such file"),
        ("", "error code 2"),
        (
            "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run()\n"
            "disue.errors.DataError: too few\n\nThe above exception was the direct cause\n"
            "flwr.clientapp.client_app.ClientAppException: \n"
            "Exception ClientAppException occurred. Message: too few'>",
            "too few",
        ),
    ],
)
def test_a_clients_error_is_one_line(reason: str, line: str) -> None:
    assert error_reason(Message(Error(2, reason), reply_to=reply_to())) == line


def test_bytes_are_those_of_the_payload() -> None:
    small = Message(RecordDict({"config": ConfigRecord({"x": 1})}), 1, "train")
    large = Message(RecordDict({"config": ConfigRecord({"x": 1}), "arrays": ArrayRecord(state())}), 1, "train")
    assert message_bytes(large) - message_bytes(small) >= 8 * 4
    assert message_bytes(large) - message_bytes(small) < 8 * 4 + 600  # names, shapes and headers


HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}".ljust(79) + b"\n"
HEADERS = {
    "that numpy stumbles over": b"\x93NUMPY\x01\x00\x01\x00(",
    "that announces terabytes": b"\x93NUMPY\x01\x00\x50\x00" + HUGE,
    "of an archive": b"PK\x03\x04",
    "of a pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_an_array_with_a_header_of_its_own_is_refused(content: bytes) -> None:
    record = ArrayRecord({"description": Array("float32", (2, 2), "numpy.ndarray", content)})
    message = Message(RecordDict({"signature": record}), reply_to=reply_to())
    with pytest.raises(WireError, match="the 'signature' record cannot be decoded"):
        DescribeReply.from_message(message)


@pytest.mark.parametrize("signature", [torch.ones(2, 3).double(), torch.ones(0, 3), torch.ones(2, 3).half()])
def test_a_description_of_another_type_is_refused(signature: torch.Tensor) -> None:
    message = Message(RecordDict({"signature": ArrayRecord({"description": signature})}), reply_to=reply_to())
    with pytest.raises(WireError, match="expected a matrix of"):
        DescribeReply.from_message(message)


@pytest.mark.parametrize("names", [["1" * 5000, "2"], ["a" * 101], [str(i) for i in range(70_000)]])
def test_names_of_classes_have_limits(names: list[str]) -> None:
    message = HelloReply("a", 9, -1, 0, "mlp", DataSummary(("a",), (0.5,), (0.1,))).to_message(reply_to())
    message.content.config_records["config"]["class-names"] = names
    with pytest.raises(WireError, match="names") as caught:
        HelloReply.from_message(message)
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize("key", ["server-round", "candidates", "signature", "local-loss", "start-from-choice"])
@pytest.mark.parametrize("value", [None, [1], "x"])
def test_a_request_without_a_setting_or_with_another_is_refused(key: str, value: object) -> None:
    message = TrainRequest(state(), 1).to_message(1)
    config = message.content.config_records["config"]
    del config[key]
    if value is not None:
        config[key] = value  # type: ignore[assignment]
    with pytest.raises(WireError, match=key):
        TrainRequest.from_message(message)


@pytest.mark.parametrize("names", [[1, 2], [0.5], [True, False]])
def test_a_task_whose_classes_are_no_texts_is_refused(names: list[object]) -> None:
    message = DescribeRequest("subspace", ImageClassification(("a", "b"), (1, 4, 4), (0.5,), (0.5,))).to_message(1)
    message.content.config_records["config"]["class-names"] = names  # type: ignore[assignment]
    with pytest.raises(WireError, match="expected printable names"):
        DescribeRequest.from_message(message)


def test_requests_with_the_same_model_share_its_record() -> None:
    record, model = Records(), state()
    first, second = (TrainRequest(model, 1, universal=model).to_message(node, record) for node in (1, 2))
    assert first.content["arrays"] is second.content["arrays"] is first.content["universal"]
    assert TrainRequest(state(), 1).to_message(3, record).content["arrays"] is not first.content["arrays"]
    evaluate = EvaluateRequest(model, 1, expert=state()).to_message(4, record)
    assert evaluate.content["arrays"] is first.content["arrays"]
    assert all(torch.equal(tensor, model[name]) for name, tensor in read_state(evaluate, "arrays").items())


def test_a_personal_accuracy_counts_where_it_was_asked_for() -> None:
    message = EvaluateReply(10, 0.5, 0.7, 0.6, personal_accuracy=0.8).to_message(reply_to())
    assert EvaluateReply.from_message(message, personal=True).personal_accuracy == 0.8
    assert EvaluateReply.from_message(message, personal=False).personal_accuracy is None
    without = EvaluateReply(10, 0.5, 0.7, 0.6).to_message(reply_to())
    with pytest.raises(WireError, match="personal-accuracy is missing; it was asked for"):
        EvaluateReply.from_message(without, personal=True)
