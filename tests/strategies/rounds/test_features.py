"""Clients say what their features are like under a model, and who does not is left out."""

from collections.abc import Callable

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from client_app.app import app as client_app
from disue.models import State
from disue.signature import Signature
from disue.wire import FeaturesReply
from disue_cli.engines.inline import InlineGrid
from strategies.rounds.features import told_features
from strategies.rounds.registry import Client

MODELS: dict[str, State] = {"a": {"head.weight": torch.zeros(2, 3)}}
CLIENTS = [Client(f"client-{i}", 10 + i, 5, 0, 4, "aab"[i]) for i in range(3)]


@pytest.fixture(autouse=True)
def _a_server() -> None:
    """Messages need one to come from."""
    InlineGrid(client_app, {}, [])


def signature(covariance: torch.Tensor) -> Signature:
    return Signature(torch.tensor([2.0, 1.0]), torch.ones(2, 3), covariance)


GOOD = signature(torch.ones(2, 6))


def answering(answers: dict[int, Callable[[Message], Message]], seen: list[int]) -> Callable[..., list[Message]]:
    def ask(messages: list[Message]) -> list[Message]:
        seen.extend(message.metadata.dst_node_id for message in messages)
        nodes = [(message, answers.get(message.metadata.dst_node_id)) for message in messages]
        return [answer(message) for message, answer in reversed(nodes) if answer]

    return ask


def good(message: Message) -> Message:
    return FeaturesReply(GOOD).to_message(message)


def asked(answers: dict[int, Callable[[Message], Message]]) -> tuple[dict[str, Signature], list[int]]:
    seen: list[int] = []
    return told_features(answering(answers, seen), CLIENTS, 3, MODELS, 2, None), seen


def test_those_of_the_models_are_asked_and_what_they_say_is_sorted_by_name(messages: list[str]) -> None:
    told, seen = asked({10: good, 11: good})
    assert seen == [10, 11]
    assert list(told) == ["client-0", "client-1"]
    assert torch.equal(told["client-1"].covariance, GOOD.covariance)
    assert not messages
    assert told_features(answering({}, seen), [], 3, MODELS, 2, None) == {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda message: Message(Error(0, "no disk"), reply_to=message), "no disk"),
        (lambda message: Message(RecordDict(), reply_to=message), "the message has no 'signature' record"),
        (
            lambda message: FeaturesReply(signature(torch.ones(6))).to_message(message),
            "the signature's covariance is (6,); expected (2, 6)",
        ),
    ],
)
def test_who_says_nothing_that_is_of_use_is_left_out_with_a_warning(
    answer: Callable[[Message], Message], reason: str, messages: list[str]
) -> None:
    told, _ = asked({10: answer, 11: good})
    assert list(told) == ["client-1"]
    assert messages == [f"client-0 told nothing of its features: {reason}"]


def test_who_is_silent_is_left_out() -> None:
    told, seen = asked({11: good})
    assert seen == [10, 11]
    assert list(told) == ["client-1"]
