"""Waiting for replies that may never come."""

import time
from collections.abc import Iterable

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from tests_support import ChangingGrid, answering_app

from disue.wire import HelloReply, HelloRequest
from strategies.rounds import transport as exchange
from strategies.rounds.transport import collect, is_no_answer, send, streaming


def grid(count: int = 3) -> ChangingGrid:
    return ChangingGrid(answering_app(), {}, [{"name": f"client-{i}"} for i in range(count)])


def ask(nodes: ChangingGrid, *node_ids: int) -> dict[str, int]:
    return send(nodes, [HelloRequest().to_message(node) for node in node_ids])


def test_replies_belong_to_the_messages_that_they_answer() -> None:
    nodes = grid()
    sent = ask(nodes, 1002, 1000)
    assert list(sent.values()) == [1002, 1000]
    replies = collect(nodes, sent, {1000, 1002}, 5.0)
    names = {sent[message_id]: HelloReply.from_message(reply).name for message_id, reply in replies.items()}
    assert names == {1000: "client-0", 1002: "client-2"}


def test_only_those_who_are_waited_for_cost_time() -> None:
    nodes = grid()
    nodes.silent.add(1001)
    sent = ask(nodes, 1000, 1001)
    started = time.monotonic()
    assert len(collect(nodes, sent, {1000}, 5.0)) == 1
    assert time.monotonic() - started < 2.5
    sent, started = ask(nodes, 1001), time.monotonic()
    assert collect(nodes, sent, {1001}, 0.3) == {}
    assert time.monotonic() - started >= 0.3
    nodes.silent.clear()
    assert list(collect(nodes, sent, set(), 0.0)) == list(sent)  # the question still stands


def test_nothing_to_ask_asks_nothing() -> None:
    class Counting(ChangingGrid):
        calls = 0

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            self.calls += 1
            return super().push_messages(messages)

    nodes = Counting(answering_app(), {}, [])
    assert send(nodes, []) == {}
    assert collect(nodes, {}, set(), 5.0) == {}
    assert nodes.calls == 0


def test_a_message_that_cannot_be_sent_is_not_waited_for() -> None:
    """A SuperLink gives no id for a message to a node that was unregistered meanwhile."""

    class Refusing(ChangingGrid):
        def push_messages(self, messages):  # type: ignore[no-untyped-def]
            messages = list(messages)
            ids = super().push_messages(messages)
            return [i if m.metadata.dst_node_id != 1001 else None for i, m in zip(ids, messages, strict=True)]

    sent = ask(Refusing(answering_app(), {}, [{"name": "a"}, {"name": "b"}]), 1000, 1001)
    assert list(sent.values()) == [1000]


def hellos(*node_ids: int) -> list[Message]:
    return [HelloRequest().to_message(node) for node in node_ids]


def test_replies_come_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, pulled = grid(10), list[int]()

    def pull_messages(message_ids: Iterable[str]) -> list[Message]:
        replies = ChangingGrid.pull_messages(nodes, message_ids)
        pulled.append(len(replies))
        return replies

    nodes.pull_messages = pull_messages  # type: ignore[method-assign]
    monkeypatch.setattr(exchange, "AT_A_TIME", 4)
    with streaming(nodes):
        arriving = iter(nodes.send_and_receive(hellos(*range(1000, 1010)), timeout=5.0))
        assert [next(arriving).metadata.src_node_id for _ in range(5)] == list(range(1000, 1005))
        assert pulled == [4, 4]
        assert [reply.metadata.src_node_id for reply in arriving] == list(range(1005, 1010))
    assert pulled == [4, 4, 2]
    assert isinstance(list(nodes.send_and_receive(hellos(1000))), list)
    assert pulled == [4, 4, 2, 1]


def test_who_is_silent_is_waited_for_and_those_who_answer_meanwhile_are_heard() -> None:
    nodes, started = grid(3), time.monotonic()
    nodes.silent |= {1000, 1002}
    heard = []
    with streaming(nodes):
        for reply in nodes.send_and_receive(hellos(1000, 1001, 1002), timeout=1.0):
            heard.append(reply.metadata.src_node_id)
            nodes.silent.discard(1002)
    assert heard == [1001, 1002]
    assert 1.0 <= time.monotonic() - started < 3.0


def test_nobody_who_could_not_be_asked_is_waited_for() -> None:
    nodes, started = grid(1), time.monotonic()
    push = nodes.push_messages
    nodes.push_messages = lambda messages: [*push(messages), None]  # type: ignore[method-assign, list-item]
    with streaming(nodes):
        assert len(list(nodes.send_and_receive(hellos(1000)))) == 1
        assert list(nodes.send_and_receive([])) == []
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.NODE_UNAVAILABLE, True),
        (ErrorCode.MESSAGE_UNAVAILABLE, True),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, True),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, False),
        (ErrorCode.CLIENT_APP_CRASHED, False),
    ],
)
def test_what_the_superlink_says_is_told_from_what_the_client_says(code: int, expected: bool) -> None:
    nodes = grid(1)
    message = HelloRequest().to_message(1000)
    nodes.push_messages([message])
    assert is_no_answer(Message(Error(code, "x"), reply_to=message)) is expected
    assert not is_no_answer(nodes.pull_messages([message.metadata.message_id])[0])
