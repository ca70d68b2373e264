"""The moments of a round, with clients that fail, lie, or stay silent."""

import copy
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from flwr.app.message import make_message
from flwr.serverapp.strategy import Result
from tests_support import Behaviour, ChangingGrid, answering_app, honest, shifted

from disue.errors import FederationError
from disue.models import State
from disue.wire import TrainReply, TrainRequest
from strategies.flower import FederatedStrategy
from strategies.methods.fedavg import FedAvg
from strategies.rounds.attempt import Attempt
from strategies.rounds.registry import Client, ClientRegistry
from strategies.rounds.replies import ReplyCollector
from strategies.rounds.stats import Participation, RoundStats

START: State = {"w": torch.zeros(3), "b": torch.zeros(2, 2)}


def averaging(registry: ClientRegistry, participation: Participation) -> FederatedStrategy:
    return FederatedStrategy(registry, participation, FedAvg("mlp"))


def universal(strategy: FederatedStrategy) -> State:
    return strategy.reached().universals["mlp"]


def fedavg(
    train: Behaviour = honest,
    clients: int = 4,
    rounds: int = 1,
    timeout: float = 60.0,
    **participation: float,
) -> tuple[FederatedStrategy, Result]:
    grid = ChangingGrid(answering_app(train), {}, [{"name": f"client-{i}"} for i in range(clients)])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, min_clients=clients, join_timeout=1.0)
    strategy = averaging(registry, Participation(num_rounds=rounds, **participation))  # type: ignore[arg-type]
    result = strategy.start(grid, ArrayRecord(START), num_rounds=rounds, timeout=timeout)
    return strategy, result


def by_its_number(name: str, request: TrainRequest, message: Message) -> Message:
    number = int(name.split("-")[1])
    return TrainReply(shifted(request.start, float(number)), number + 1, 0.1 * number, 2).to_message(message)


def test_the_average_is_weighted_by_examples() -> None:
    strategy, result = fedavg(by_its_number)
    expected = (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10
    assert universal(strategy)["w"].tolist() == pytest.approx([expected] * 3)
    assert torch.equal(dict(result.arrays.to_torch_state_dict())["w"], universal(strategy)["w"])
    assert strategy.stats.clients_ok == 4
    assert strategy.stats.client_steps == 8
    assert strategy.stats.train_loss == pytest.approx(0.1 * expected)


def test_no_more_than_one_reply_is_in_memory_at_a_time() -> None:
    replies: list[weakref.ref[Message]] = []

    def train(name: str, request: TrainRequest, message: Message) -> Message:
        alive.append(sum(reply() is not None for reply in replies))
        replies.append(weakref.ref(reply := by_its_number(name, request, message)))
        return reply

    alive: list[int] = []
    fedavg(train, clients=10, rounds=2)
    assert len(alive) == 20
    assert max(alive) <= 2  # the one before, which was read, and the one before that, when they are let go of


def test_rounds_go_on_from_the_new_model() -> None:
    strategy, _ = fedavg(rounds=3)
    assert universal(strategy)["b"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


@pytest.mark.parametrize("behaviour", ["raises", "nan", "shape"])
def test_a_bad_client_is_counted_and_the_round_goes_on_without_it(behaviour: str) -> None:
    def train(name: str, request: TrainRequest, message: Message) -> Message:
        if name != "client-3":
            return honest(name, request, message)
        if behaviour == "raises":
            raise RuntimeError("out of memory")
        bad = {"nan": {"w": torch.full((3,), float("nan"))}, "shape": {"w": torch.zeros(4)}}[behaviour]
        return TrainReply(request.start | bad, 1000, 0.0, 1).to_message(message)

    strategy, _ = fedavg(train)
    stats = strategy.stats
    assert (stats.clients_ok, stats.clients_failed, stats.clients_rejected) == (
        (3, 1, 0) if behaviour == "raises" else (3, 0, 1)
    )
    assert universal(strategy)["w"].tolist() == [1.0, 1.0, 1.0]


def test_too_many_failures_end_the_run_with_the_numbers() -> None:
    def train(name: str, request: TrainRequest, message: Message) -> Message:
        if name == "client-0":
            return honest(name, request, message)
        raise RuntimeError("broken")

    with pytest.raises(FederationError, match="min-success-fraction: 1 of 4 clients sent a usable update in round 1"):
        fedavg(train)
    strategy, _ = fedavg(train, min_success_fraction=0.25)
    assert strategy.stats.clients_failed == 3


def test_silent_clients_cost_the_timeout_and_no_more() -> None:
    def slow(name: str, request: TrainRequest, message: Message) -> Message:
        if name == "client-1":
            time.sleep(0.3)
        return honest(name, request, message)

    strategy, _ = fedavg(slow, timeout=0.2)
    assert strategy.stats.clients_ok == 2
    assert strategy.stats.clients_failed == 2


class Patient(ChangingGrid):
    """Waits for the nodes that are silent until the timeout, as Flower's own grid does."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        if timeout and any(message.metadata.dst_node_id in self.silent for message in messages):
            time.sleep(timeout)
        return super().send_and_receive(messages, timeout=timeout)


def test_a_client_that_never_answers_costs_the_timeout_once() -> None:
    grid = Patient(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    registry = ClientRegistry(seed=0, timeout=2.0)
    registry.gather(grid, 4, 1.0)
    grid.silent.add(1002)
    strategy = averaging(registry, Participation(num_rounds=5))
    started = time.monotonic()
    strategy.start(grid, ArrayRecord(START), num_rounds=5, timeout=2.0)
    assert 2.0 <= time.monotonic() - started < 4.0
    assert (strategy.stats.clients_ok, strategy.stats.clients_failed) == (3, 1)
    assert list(strategy.stats.evaluations) == ["client-0", "client-1", "client-3"]


def test_clients_that_are_left_out_count_among_those_of_whom_enough_must_answer() -> None:
    grid = ChangingGrid(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    registry = ClientRegistry(seed=0, timeout=0.5)
    registry.gather(grid, 4, 1.0)
    registry.leave_out([1000, 1001])
    grid.silent |= {1000, 1001}
    averaging(registry, Participation(num_rounds=1)).start(grid, ArrayRecord(START), num_rounds=1)
    with pytest.raises(FederationError, match="2 of 4 clients sent a usable update in round 1 and 3 are needed"):
        averaging(registry, Participation(num_rounds=1, min_success_fraction=0.6)).start(
            grid, ArrayRecord(START), num_rounds=1
        )


def test_only_sampled_clients_are_aggregated() -> None:
    asked: list[str] = []

    def train(name: str, request: TrainRequest, message: Message) -> Message:
        asked.append(name)
        return honest(name, request, message)

    strategy, _ = fedavg(train, clients=10, fraction_train=0.3)
    assert len(asked) == 3
    assert strategy.reached().clusters.keys() == set(asked)


def test_evaluation_every_other_round_and_personal_accuracy_in_the_last() -> None:
    seen: list[tuple[int, int, bool]] = []

    class Watched(FederatedStrategy):
        def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
            result = super().aggregate_evaluate(server_round, replies)
            replies = self.stats.evaluations.values()
            seen.append((server_round, len(replies), any(r.personal_accuracy is not None for r in replies)))
            return result

    grid = ChangingGrid(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, 4, 1.0)
    participation = Participation(num_rounds=5, evaluate_every=2, fraction_evaluate=0.5)
    Watched(registry, participation, FedAvg("mlp")).start(grid, ArrayRecord(START), num_rounds=5)
    assert seen == [(1, 0, False), (2, 2, False), (3, 0, False), (4, 2, False), (5, 4, True)]


def test_a_round_without_evaluation_has_no_evaluation_time() -> None:
    seconds: list[float] = []

    class Watched(FederatedStrategy):
        def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
            result = super().aggregate_evaluate(server_round, replies)
            seconds.append(self.stats.seconds["evaluation"])
            return result

    def slow(name: str, request: TrainRequest, message: Message) -> Message:
        time.sleep(0.1)
        return honest(name, request, message)

    grid = ChangingGrid(answering_app(slow), {}, [{"name": "a"}, {"name": "b"}])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, 2, 1.0)
    Watched(registry, Participation(num_rounds=2, evaluate_every=2), FedAvg("mlp")).start(
        grid, ArrayRecord(START), num_rounds=2
    )
    assert seconds[0] < 0.05


def test_seven_hundredths_of_a_hundred_is_seven() -> None:
    clients = [Client(f"client-{i}", i, 10, -1, 100, "mlp") for i in range(100)]
    participation = Participation(num_rounds=1, min_success_fraction=0.07)
    replies = ReplyCollector(ClientRegistry(0))
    attempt = Attempt(ChangingGrid(answering_app(), {}, []), replies, participation, RoundStats(1), clients, 0)
    attempt.require(7)
    with pytest.raises(FederationError, match="6 of 100 clients sent a usable update in round 1 and 7 are needed"):
        attempt.require(6)


def test_bytes_grow_with_the_number_of_clients() -> None:
    few, many = (fedavg(clients=count)[0].stats for count in (2, 4))
    assert many.bytes_down == pytest.approx(2 * few.bytes_down, rel=0.01)
    assert many.bytes_up == pytest.approx(2 * few.bytes_up, rel=0.01)
    assert few.bytes_down > 2 * 2 * 7 * 4  # two clients, a model each for training and for evaluation


class Unreliable:
    """Clients that fail the first time that they are asked in a round, and keep a record of who was asked."""

    def __init__(self, failing: Callable[[str], bool]) -> None:
        self.failing = failing
        self.asked: list[str] = []

    def __call__(self, name: str, request: TrainRequest, message: Message) -> Message:
        self.asked.append(name)
        if self.failing(name):
            raise RuntimeError("busy")
        return honest(name, request, message)


def test_a_round_with_too_few_updates_is_repeated_once_and_its_failures_are_counted(messages: list[str]) -> None:
    tries: list[str] = []

    def busy_at_first(name: str) -> bool:
        tries.append(name)
        return name in ("client-1", "client-2", "client-3") and tries.count(name) == 1

    train = Unreliable(busy_at_first)
    strategy, _ = fedavg(train, rounds=2)
    stats = strategy.stats
    assert train.asked == 3 * [f"client-{i}" for i in range(4)]
    assert universal(strategy)["w"].tolist() == [2.0, 2.0, 2.0]
    assert (stats.repeats, stats.clients_ok, stats.clients_failed) == (0, 4, 0)
    failures = [line for line in messages if line.startswith("client-") and line.endswith("RuntimeError: busy")]
    assert failures == [f"client-{i} failed: RuntimeError: busy" for i in (1, 2, 3)]
    (told,) = (line for line in messages if "repeated" in line)
    assert told.startswith("min-success-fraction: 1 of 4 clients sent a usable update in round 1 and 2 are needed")


def test_the_round_that_is_repeated_asks_others_first_and_those_that_failed_last() -> None:
    made = averaging(ClientRegistry(seed=0), Participation(num_rounds=1, fraction_train=0.3))
    sampled: list[list[str]] = []

    def run(
        failing: Callable[[str], bool], clients: int, fraction: float
    ) -> tuple[list[str], list[str], FederatedStrategy]:
        train = Unreliable(failing)
        grid = ChangingGrid(answering_app(train), {}, [{"name": f"client-{i}"} for i in range(clients)])
        registry = ClientRegistry(seed=0)
        registry.gather(grid, clients, 1.0)
        strategy = averaging(registry, Participation(num_rounds=1, fraction_train=fraction, min_success_fraction=1.0))
        count = round(fraction * clients)
        try:
            strategy.start(grid, ArrayRecord(START), num_rounds=1)
        finally:
            sampled[:] = [train.asked[:count], train.asked[count:]]
        return sampled[0], sampled[1], strategy

    assert made.stats.repeats == 0
    first, _, _ = run(lambda name: False, 10, 0.3)
    broken = first[1]
    once, again, strategy = run(lambda name: name == broken, 10, 0.3)
    assert once == first
    assert len(again) == 3
    assert not set(again) & set(once)
    stats = strategy.stats
    assert (stats.repeats, stats.clients_ok, stats.clients_failed) == (1, 3, 1)
    assert strategy.reached().clusters.keys() == set(again)
    assert run(lambda name: name == broken, 10, 0.3)[1] == again  # the seed decides
    # Of five, four are asked: the other one, and three of those that were well.
    first, _, _ = run(lambda name: False, 5, 0.8)
    broken = first[2]
    once, again, _ = run(lambda name: name == broken, 5, 0.8)
    assert set(again) == {f"client-{i}" for i in range(5)} - {broken}


def test_after_a_round_that_failed_twice_the_run_stops_with_both_failures(messages: list[str]) -> None:
    train = Unreliable(lambda name: name != "client-0")
    with pytest.raises(
        FederationError,
        match=r"^min-success-fraction: 1 of 4 clients sent a usable update in round 1 and 2 are needed, also when it "
        "was repeated; the first problem was: client-1 failed: RuntimeError: busy$",
    ):
        fedavg(train)
    assert len(train.asked) == 8


def test_clients_that_were_silent_are_not_waited_for_when_the_round_is_repeated() -> None:
    grid = Patient(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    registry = ClientRegistry(seed=0, timeout=0.5)
    registry.gather(grid, 4, 1.0)
    grid.silent |= {1000, 1001, 1002}
    started = time.monotonic()
    with pytest.raises(FederationError, match="1 of 4 clients .* also when it was repeated; the others did not answer"):
        averaging(registry, Participation(num_rounds=1)).start(grid, ArrayRecord(START), num_rounds=1, timeout=0.5)
    assert 0.5 <= time.monotonic() - started < 1.0


class Confusing(ChangingGrid):
    """Gives replies that nobody waits for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.more: Callable[[Message], list[Message]] = lambda reply: [reply]
        self.past: dict[int, Message] = {}
        """The last round's reply of every node."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        given = [given for reply in replies for given in self.more(reply)]
        self.past |= {reply.metadata.src_node_id: reply for reply in replies if reply.metadata.message_type == "train"}
        return given


def confused(more: Callable[[Confusing, Message], list[Message]]) -> FederatedStrategy:
    """Run two rounds in which a grid gives other replies in place of those of client-1, node 1001."""
    grid = Confusing(answering_app(by_its_number), {}, [{"name": f"client-{i}"} for i in range(4)])
    said_by_1 = (1001, "train")
    grid.more = lambda reply: (
        more(grid, reply) if (reply.metadata.src_node_id, reply.metadata.message_type) == said_by_1 else [reply]
    )
    registry = ClientRegistry(seed=0)
    registry.gather(grid, 4, 1.0)
    strategy = averaging(registry, Participation(num_rounds=2, evaluate_every=2))
    strategy.start(grid, ArrayRecord(START), num_rounds=2)
    return strategy


def from_node(reply: Message, node_id: int) -> Message:
    """Return a reply as if another node had sent it."""
    other = copy.copy(reply.metadata)
    other.__dict__["_src_node_id"] = node_id
    return make_message(metadata=other, content=reply.content)


EVERYONE, WITHOUT_1 = 2 * (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10, (0 * 1 + 2 * 3 + 3 * 4) / 8


@pytest.mark.parametrize(
    ("more", "reason", "ok", "rejected", "moved"),
    [
        (lambda grid, reply: [reply, reply], "it has answered before", 4, 0, EVERYONE),
        (lambda grid, reply: [*filter(None, [grid.past.get(1001)]), reply], "a request of round 1", 4, 0, EVERYONE),
        (lambda grid, reply: [grid.past.get(1001, reply)], "a request of round 1", 3, 1, EVERYONE / 2 + WITHOUT_1),
        (lambda grid, reply: [reply, from_node(reply, 77)], "it was not asked", 4, 0, EVERYONE),
        (lambda grid, reply: [from_node(reply, 1000), reply], "it answers another request", 4, 0, EVERYONE),
    ],
    ids=["twice", "late", "of-another-round", "of-nobody", "of-somebody-else"],
)
def test_a_reply_that_does_not_fit_a_request_is_rejected_and_named(
    messages: list[str],
    more: Callable[[Confusing, Message], list[Message]],
    reason: str,
    ok: int,
    rejected: int,
    moved: float,
) -> None:
    strategy = confused(more)
    stats = strategy.stats
    assert (stats.clients_ok, stats.clients_rejected, stats.clients_failed) == (ok, rejected, 0)
    assert universal(strategy)["w"].tolist() == pytest.approx([moved] * 3)
    told = [line for line in messages if "reply rejected" in line]
    assert told
    assert all(reason in line for line in told)
    assert len(strategy.registry.clients) == 4


def test_a_round_in_which_nobody_was_there_to_be_asked_is_repeated_too() -> None:
    grid = ChangingGrid(answering_app(), {}, [{"name": "a"}, {"name": "b"}])
    registry = ClientRegistry(seed=0)
    registry.gather(grid, 2, 1.0)
    away = [grid.forget(node_id) for node_id in (1000, 1001)]
    receive = grid.send_and_receive

    def back_after_the_first(messages: Iterable[Message], **how: Any) -> list[Message]:
        replies = list(receive(messages, **how))
        for context in away:
            grid.bring_back(context)
        return replies

    grid.send_and_receive = back_after_the_first  # type: ignore[method-assign]
    strategy = averaging(registry, Participation(num_rounds=1))
    strategy.start(grid, ArrayRecord(START), num_rounds=1)
    stats = strategy.stats
    assert (stats.repeats, stats.clients_ok, stats.clients_failed) == (1, 2, 2)
