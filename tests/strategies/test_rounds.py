"""The moments of a round, with clients that fail, lie, or stay silent."""

import time
from collections.abc import Iterable

import pytest
import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import Result
from tests_support import Behaviour, ChangingGrid, answering_app, honest, shifted

from disue.errors import FederationError
from disue.models import State
from disue.wire import TrainReply, TrainRequest
from strategies.base import Participation
from strategies.fedavg import FedAvg
from strategies.roster import Roster

START: State = {"w": torch.zeros(3), "b": torch.zeros(2, 2)}


def fedavg(
    train: Behaviour = honest,
    clients: int = 4,
    rounds: int = 1,
    timeout: float = 60.0,
    **participation: float,
) -> tuple[FedAvg, Result]:
    grid = ChangingGrid(answering_app(train), {}, [{"name": f"client-{i}"} for i in range(clients)])
    roster = Roster(seed=0)
    roster.gather(grid, min_clients=clients, join_timeout=1.0)
    strategy = FedAvg(roster, Participation(num_rounds=rounds, **participation))  # type: ignore[arg-type]
    result = strategy.start(grid, ArrayRecord(START), num_rounds=rounds, timeout=timeout)
    return strategy, result


def by_its_number(name: str, request: TrainRequest, message: Message) -> Message:
    number = int(name.split("-")[1])
    return TrainReply(shifted(request.start, float(number)), number + 1, 0.1 * number, 2).to_message(message)


def test_the_average_is_weighted_by_examples() -> None:
    strategy, result = fedavg(by_its_number)
    expected = (0 * 1 + 1 * 2 + 2 * 3 + 3 * 4) / 10
    assert strategy.universal["w"].tolist() == pytest.approx([expected] * 3)
    assert torch.equal(dict(result.arrays.to_torch_state_dict())["w"], strategy.universal["w"])
    assert strategy.outcome.clients_ok == 4
    assert strategy.outcome.client_steps == 8
    assert strategy.outcome.train_loss == pytest.approx(0.1 * expected)


def test_rounds_go_on_from_the_new_model() -> None:
    strategy, _ = fedavg(rounds=3)
    assert strategy.universal["b"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


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
    outcome = strategy.outcome
    assert (outcome.clients_ok, outcome.clients_failed, outcome.clients_rejected) == (
        (3, 1, 0) if behaviour == "raises" else (3, 0, 1)
    )
    assert strategy.universal["w"].tolist() == [1.0, 1.0, 1.0]


def test_too_many_failures_end_the_run_with_the_numbers() -> None:
    def train(name: str, request: TrainRequest, message: Message) -> Message:
        if name == "client-0":
            return honest(name, request, message)
        raise RuntimeError("broken")

    with pytest.raises(FederationError, match="min-success-fraction: 1 of 4 clients sent a usable update in round 1"):
        fedavg(train)
    strategy, _ = fedavg(train, min_success_fraction=0.25)
    assert strategy.outcome.clients_failed == 3


def test_silent_clients_cost_the_timeout_and_no_more() -> None:
    def slow(name: str, request: TrainRequest, message: Message) -> Message:
        if name == "client-1":
            time.sleep(0.3)
        return honest(name, request, message)

    strategy, _ = fedavg(slow, timeout=0.2)
    assert strategy.outcome.clients_ok == 2
    assert strategy.outcome.clients_failed == 2


class Patient(ChangingGrid):
    """Waits for the nodes that are silent until the timeout, as Flower's own grid does."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        if timeout and any(message.metadata.dst_node_id in self.silent for message in messages):
            time.sleep(timeout)
        return super().send_and_receive(messages, timeout=timeout)


def test_a_client_that_never_answers_costs_the_timeout_once() -> None:
    grid = Patient(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    roster = Roster(seed=0, timeout=2.0)
    roster.gather(grid, 4, 1.0)
    grid.silent.add(1002)
    strategy = FedAvg(roster, Participation(num_rounds=5))
    started = time.monotonic()
    strategy.start(grid, ArrayRecord(START), num_rounds=5, timeout=2.0)
    assert 2.0 <= time.monotonic() - started < 4.0
    assert (strategy.outcome.clients_ok, strategy.outcome.clients_failed) == (3, 1)
    assert list(strategy.outcome.evaluations) == ["client-0", "client-1", "client-3"]


def test_clients_that_are_left_out_count_among_those_of_whom_enough_must_answer() -> None:
    grid = ChangingGrid(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    roster = Roster(seed=0, timeout=0.5)
    roster.gather(grid, 4, 1.0)
    roster.leave_out([1000, 1001])
    grid.silent |= {1000, 1001}
    FedAvg(roster, Participation(num_rounds=1)).start(grid, ArrayRecord(START), num_rounds=1)
    with pytest.raises(FederationError, match="2 of 4 clients sent a usable update in round 1 and 3 are needed"):
        FedAvg(roster, Participation(num_rounds=1, min_success_fraction=0.6)).start(
            grid, ArrayRecord(START), num_rounds=1
        )


def test_only_sampled_clients_are_aggregated() -> None:
    asked: list[str] = []

    def train(name: str, request: TrainRequest, message: Message) -> Message:
        asked.append(name)
        return honest(name, request, message)

    strategy, _ = fedavg(train, clients=10, fraction_train=0.3)
    assert len(asked) == 3
    assert strategy.clusters.keys() == set(asked)


def test_evaluation_every_other_round_and_personal_accuracy_in_the_last() -> None:
    seen: list[tuple[int, int, bool]] = []

    class Watched(FedAvg):
        def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
            result = super().aggregate_evaluate(server_round, replies)
            replies = self.outcome.evaluations.values()
            seen.append((server_round, len(replies), any(r.personal_accuracy is not None for r in replies)))
            return result

    grid = ChangingGrid(answering_app(), {}, [{"name": f"client-{i}"} for i in range(4)])
    roster = Roster(seed=0)
    roster.gather(grid, 4, 1.0)
    participation = Participation(num_rounds=5, evaluate_every=2, fraction_evaluate=0.5)
    Watched(roster, participation).start(grid, ArrayRecord(START), num_rounds=5)
    assert seen == [(1, 0, False), (2, 2, False), (3, 0, False), (4, 2, False), (5, 4, True)]


def test_a_round_without_evaluation_has_no_evaluation_time() -> None:
    seconds: list[float] = []

    class Watched(FedAvg):
        def aggregate_evaluate(self, server_round, replies):  # type: ignore[no-untyped-def]
            result = super().aggregate_evaluate(server_round, replies)
            seconds.append(self.outcome.seconds["evaluation"])
            return result

    def slow(name: str, request: TrainRequest, message: Message) -> Message:
        time.sleep(0.1)
        return honest(name, request, message)

    grid = ChangingGrid(answering_app(slow), {}, [{"name": "a"}, {"name": "b"}])
    roster = Roster(seed=0)
    roster.gather(grid, 2, 1.0)
    Watched(roster, Participation(num_rounds=2, evaluate_every=2)).start(grid, ArrayRecord(START), num_rounds=2)
    assert seconds[0] < 0.05


def test_seven_hundredths_of_a_hundred_is_seven() -> None:
    strategy = FedAvg(Roster(0), Participation(num_rounds=1, min_success_fraction=0.07))
    strategy._sampled = [None] * 100  # type: ignore[list-item]
    strategy._require_enough(7)
    with pytest.raises(FederationError, match="6 of 100 clients sent a usable update in round 0 and 7 are needed"):
        strategy._require_enough(6)


def test_bytes_grow_with_the_number_of_clients() -> None:
    few, many = (fedavg(clients=count)[0].outcome for count in (2, 4))
    assert many.bytes_down == pytest.approx(2 * few.bytes_down, rel=0.01)
    assert many.bytes_up == pytest.approx(2 * few.bytes_up, rel=0.01)
    assert few.bytes_down > 2 * 2 * 7 * 4  # two clients, a model each for training and for evaluation
