"""Clients describe their data before they train, and again when they train on others."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp
from tests_support import ChangingGrid, answering_app, calls_of, shifted
from torch import Tensor

from disue.models import State
from disue.wire import DescribeReply, DescribeRequest, TrainReply, TrainRequest
from strategies.clustering.assignment import BySignature
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.similarity import SIGNATURES
from strategies.flower import FederatedStrategy
from strategies.methods.base import Method
from strategies.methods.clustered import AssignedMethod
from strategies.methods.fedavg import FedAvg
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.state import restore, state_of
from strategies.rounds.stats import Participation

START: State = {"w": torch.zeros(3)}
EAST, WEST = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
RUN = "0123456789abcdef"


class Data(NamedTuple):
    """What a client has: how it describes that, and what it calls it."""

    description: Tensor
    digest: str | None


def by_signature() -> AssignedMethod:
    name = "initial-prototypes"
    return AssignedMethod("mlp", BySignature(name, SIGNATURES[name], CLUSTERERS["agglomerative"](2, 0)))


class Federation:
    """Clients that say what ``data`` has of them at the time, on a grid whose rounds are run one by one.

    Attributes
    ----------
    asked : list of str
        Who was asked for a description, since this was last cleared.
    order : list of str
        The kinds of messages that were answered.
    """

    def __init__(self, data: dict[str, Data], method: Method[Any] | None = None, fraction: float = 1.0) -> None:
        self.data, self.asked, self.order = data, list[str](), list[str]()
        self.trained = dict[str, Callable[[State], State]]()
        self.grid = ChangingGrid(self._app(), {}, [{"name": name} for name in data])
        self.registry = ClientRegistry(seed=0)
        self.registry.gather(self.grid, len(data), 1.0)
        participation = Participation(num_rounds=9, fraction_train=fraction, min_success_fraction=0.01)
        self.strategy = FederatedStrategy(self.registry, participation, method or by_signature(), run=RUN)
        self.round = 0

    def _app(self) -> ClientApp:
        app = answering_app(self._train)

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            name = str(context.node_config["name"])
            assert DescribeRequest.from_message(message).run == RUN
            self.asked.append(name)
            self.order.append(message.metadata.message_type)
            return DescribeReply(*self.data[name]).to_message(message)

        return app

    def _train(self, name: str, request: TrainRequest, message: Message) -> Message:
        assert request.digest == bool(self.strategy.method.needs.description)
        assert request.run == (RUN if request.digest else "")
        self.order.append(message.metadata.message_type)
        assert request.start is not None
        state = self.trained.get(name, lambda start: shifted(start, 1.0))(request.start)
        return TrainReply(state, 1, 0.5, 1, digest=self.data[name].digest).to_message(message)

    @property
    def clusters(self) -> dict[str, int]:
        return dict(self.strategy.reached().clusters)

    def run_round(self) -> dict[str, int]:
        """Carry out the next round, and return the clusters."""
        self.round += 1
        arrays = ArrayRecord(START)
        messages = list(self.strategy.configure_train(self.round, arrays, None, self.grid))  # type: ignore[arg-type]
        self.strategy.aggregate_train(self.round, self.grid.send_and_receive(messages))
        return self.clusters

    def node_of(self, name: str) -> int:
        return next(client.node_id for client in self.registry.clients if client.name == name)


def five_clients() -> dict[str, Data]:
    return {name: Data(EAST if name in "abe" else WEST, f"of-{name}") for name in "abcde"}


def begun(**more: Any) -> tuple[Federation, dict[str, int]]:
    """Return clients after their first round, which nobody is asked about any more, and their clusters."""
    federation = Federation(five_clients(), **more)
    clusters = federation.run_round()
    assert sorted(federation.asked) == list("abcde")
    federation.asked.clear()
    return federation, clusters


def test_who_trained_on_other_data_describes_them_and_its_cluster_follows_in_the_same_round(
    messages: list[str],
) -> None:
    federation, first = begun()
    assert first["a"] == first["b"] == first["e"] != first["c"] == first["d"]
    federation.data["b"] = Data(WEST, "new")
    federation.order.clear()
    assert federation.run_round() == first | {"b": first["c"]}
    assert federation.asked == ["b"]
    assert federation.order == [MessageType.TRAIN] * 5 + ["query.describe"]
    assert torch.equal(federation.strategy.descriptions["b"], WEST)
    assert messages.count("the data of b changed; it is asked to describe them again") == 1
    assert federation.run_round() == first | {"b": first["c"]}
    assert federation.asked == ["b"], "it has described what it trains on"
    federation.data["b"] = Data(EAST, "of-b")
    assert federation.run_round() == first
    assert federation.asked == ["b", "b"]


def test_the_bytes_of_another_description_are_counted() -> None:
    federation, _ = begun()
    federation.run_round()
    usual = federation.strategy.stats
    federation.data["b"] = Data(WEST, "new-")
    federation.run_round()
    stats = federation.strategy.stats
    assert stats.bytes_down > usual.bytes_down
    assert stats.bytes_up >= usual.bytes_up + WEST.nbytes


def test_who_is_not_sampled_is_not_asked() -> None:
    federation = Federation(five_clients(), fraction=0.2)
    first = federation.run_round()
    federation.asked.clear()
    (sampled,) = (client.name for client in federation.registry.sample(0.2, "train", 2))
    for name in first:
        federation.data[name] = Data(WEST, f"new-{name}")
    federation.run_round()
    assert federation.asked == [sampled]


def test_who_says_something_else_each_time_is_asked_once_a_round() -> None:
    federation, first = begun()
    for number in range(4):
        federation.data["d"] = Data(WEST, f"new-{number}")
        assert federation.run_round() == first
    assert federation.asked == ["d"] * 4


@pytest.mark.parametrize("digest", [None, "of-d"])
def test_who_says_nothing_or_the_same_stays_where_it_is(digest: str | None) -> None:
    federation, first = begun()
    federation.data["d"] = Data(EAST, digest)
    assert federation.run_round() == first
    assert federation.asked == []


def test_who_described_its_data_without_a_digest_is_asked_for_one_with() -> None:
    data = five_clients()
    data["d"] = Data(WEST, None)
    federation = Federation(data)
    first = federation.run_round()
    federation.data["d"] = Data(EAST, "of-d")
    assert federation.run_round() == first | {"d": first["a"]}
    federation.asked.clear()
    federation.run_round()
    assert federation.asked == []


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (torch.ones(1, 3), "b: description rejected: it is (1, 3); expected (1, 2) like the other clients'"),
        (torch.full((1, 2), float("nan")), "b could not describe its data: description has values that are not"),
    ],
    ids=["shape", "nan"],
)
def test_who_cannot_describe_them_stays_where_it_is_and_is_asked_again(
    odd: Tensor, words: str, messages: list[str]
) -> None:
    federation, first = begun()
    federation.data["b"] = Data(odd, "new")
    for times in (1, 2):
        assert federation.run_round() == first
        assert len([line for line in messages if line.startswith(words)]) == times
    assert torch.equal(federation.strategy.descriptions["b"], EAST)
    federation.data["b"] = Data(WEST, "new")
    assert federation.run_round() == first | {"b": first["c"]}
    assert federation.asked == ["b"] * 3


def test_who_is_gone_when_it_is_asked_is_left_out_and_asked_when_it_is_back() -> None:
    federation, first = begun()
    federation.data["b"] = Data(WEST, "new")
    node, push = federation.node_of("b"), federation.grid.push_messages

    def silent_when_asked(requests: Iterable[Message]) -> list[str]:
        requests = list(requests)
        if any(request.metadata.message_type == "query.describe" for request in requests):
            federation.grid.silent = {node}
        return list(push(requests))

    federation.grid.push_messages = silent_when_asked  # type: ignore[method-assign]
    assert federation.run_round() == first
    assert [client.name for client in federation.registry.away.values()] == ["b"]
    assert federation.strategy.stats.clients_ok == 5
    federation.grid.push_messages = push  # type: ignore[method-assign]
    federation.grid.silent = set()
    assert federation.run_round() == first | {"b": first["c"]}


def test_whose_update_is_refused_is_not_asked() -> None:
    federation, first = begun()
    federation.data["b"] = Data(WEST, "new")
    federation.trained["b"] = lambda start: shifted(start, float("nan"))
    assert federation.run_round() == first
    assert federation.strategy.stats.clients_rejected == 1
    assert federation.asked == []
    del federation.trained["b"]
    assert federation.run_round() == first | {"b": first["c"]}


def test_a_method_that_needs_no_descriptions_asks_for_no_digest_and_looks_at_none() -> None:
    federation = Federation(five_clients(), FedAvg("mlp"))
    for number in range(2):
        federation.data["b"] = Data(WEST, f"new-{number}")
        federation.run_round()
    assert federation.asked == []
    assert federation.strategy.stats.clients_ok == 5


def test_what_was_described_is_known_after_a_break() -> None:
    federation, first = begun()
    again = Federation(five_clients())
    restore(again.strategy, state_of(federation.strategy))
    again.round = federation.round
    assert again.run_round() == first
    assert again.asked == []
    again.data["b"] = Data(WEST, "new")
    assert again.run_round() == first | {"b": first["c"]}
    assert again.asked == ["b"]


def test_a_method_is_told_for_one_round_whose_data_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    federation, _ = begun()
    assigned = calls_of(monkeypatch, AssignedMethod, "assign")
    federation.data["b"] = Data(WEST, "new")
    federation.run_round()
    federation.run_round()
    assert [call.given["round"].changed for call in assigned] == [{"b"}, set()]


def test_who_comes_back_with_other_data_is_told_apart_from_who_comes_back_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are asked before they train; whether they are sampled makes no difference."""
    federation, first = begun()
    federation.data["b"] = Data(WEST, "new")
    nodes = [federation.grid.forget(federation.node_of(name)) for name in "bd"]
    federation.run_round()
    for context in nodes:
        federation.grid.bring_back(context)
    assigned = calls_of(monkeypatch, AssignedMethod, "assign")
    federation.order.clear()
    assert federation.run_round() == first | {"b": first["c"]}
    assert sorted(federation.asked) == ["b", "d"]
    assert federation.order == ["query.describe"] * 2 + [MessageType.TRAIN] * 5
    assert [call.given["round"].changed for call in assigned] == [{"b"}]


def test_a_change_is_not_forgotten_in_a_round_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    federation, first = begun()
    federation.data["b"] = Data(WEST, "new")

    def failing(*arguments: Any) -> Any:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(AssignedMethod, "assign", failing)
        with pytest.raises(RuntimeError):
            federation.run_round()
    assert federation.clusters == first
    assigned = calls_of(monkeypatch, AssignedMethod, "assign")
    assert federation.run_round() == first | {"b": first["c"]}
    assert [call.given["round"].changed for call in assigned] == [{"b"}]
    assert federation.asked == ["b"]
