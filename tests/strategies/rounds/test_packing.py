"""Several clients on a node are to the strategy what they are on nodes of their own."""

import csv
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file

from client_app import packing, training_job
from client_app.app import app as client_app
from client_app.packing import answer_for_all
from disue.errors import ConfigError, FederationError
from disue.wire import HelloReply, HelloRequest
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import RunConfig
from strategies.rounds.packing import PackedGrid, seated

TIMINGS = ("seconds",)


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(TIMINGS)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fraction_train": 0.5, "method": "ifca", "num_clusters": 2},
        {"privacy": "secure", "num_clusters": 2, "clients": 12},
        {"client_models": "mlp,cnn"},
    ],
)
def test_a_run_is_the_same_however_many_clients_sit_on_a_node(run, settings: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    settings = {"clients": 6, **settings}
    apart, together = run(**settings), run(**settings, clients_per_node=3)
    assert [without_timings(row) for row in together.rows] == [without_timings(row) for row in apart.rows]
    tables = [list(csv.DictReader((result.directory / "clients.csv").open())) for result in (apart, together)]
    assert tables[0] == tables[1]
    assert len(tables[0]) == settings["clients"]
    models = [load_file(result.directory / "universal.safetensors") for result in (apart, together)]
    assert all((models[1][name] == tensor).all() for name, tensor in models[0].items())


@pytest.mark.parametrize(("device", "wished", "found"), [("cpu", 0, 1), ("cuda", 0, 100), ("cuda", 300, 250)])
def test_how_many_clients_of_a_node_train_together(
    monkeypatch: pytest.MonkeyPatch, device: str, wished: int, found: int
) -> None:
    monkeypatch.setattr(packing, "prepare_device", lambda name: torch.device(device))
    assert packing.clients_at_once(RunConfig(clients_at_once=wished), 250) == found
    assert packing.clients_at_once(RunConfig(clients_at_once=wished), 1) == 1


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clients trained as one network, each time."""
    sizes: list[int] = []
    original = training_job.train_batched

    def watch(model: Any, starts: Any, *rest: Any) -> Any:
        sizes.append(len(starts))
        return original(model, starts, *rest)

    monkeypatch.setattr(training_job, "train_batched", watch)
    return sizes


@pytest.mark.parametrize(
    "settings", [{}, {"privacy": "dp", "dp_noise": 0.01}, {"privacy": "secure", "prototypes": "cluster"}]
)
def test_clients_that_train_together_come_where_each_comes_alone(  # type: ignore[no-untyped-def]
    run, together: list[int], settings: dict[str, Any]
) -> None:
    before = run(clients=6, **settings).rows
    assert together == []
    after = run(clients=6, **settings, clients_per_node=6, clients_at_once=4).rows
    assert together == [4, 2, 4, 2]
    for row, other in zip(before, after, strict=True):
        for key in ("universal_accuracy", "expert_accuracy", "train_loss"):
            assert other[key] == pytest.approx(row[key], abs=1e-3, nan_ok=True)
        assert other["client_steps"] == row["client_steps"]


def test_with_dp_the_errors_of_clients_that_train_together_stay_with_them(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def fails(*arguments: Any) -> None:
        raise RuntimeError("the label of patient 7")

    monkeypatch.setattr(training_job, "train_batched", fails)
    for privacy, told in (("plain", "the label of patient 7"), ("dp", "what went wrong is in its own log")):
        with pytest.raises(FederationError, match=told):
            run(clients=4, clients_per_node=4, clients_at_once=4, privacy=privacy)


def test_with_one_seat_the_grid_is_as_it_was() -> None:
    grid = InlineGrid(client_app, {}, [])
    assert seated(grid, 1) is grid


def some_grid(nodes: int, seats: int, app: ClientApp = client_app, **settings: Any) -> PackedGrid:
    config = RunConfig.from_flower({"clients-per-node": seats, **settings}).to_flower()
    return PackedGrid(InlineGrid(app, config, simulated_nodes(nodes)), seats)


def test_every_client_has_its_own_partition_and_answers_its_own_message() -> None:
    grid = some_grid(nodes=3, seats=4)
    ids = grid.get_node_ids()
    assert len(set(ids)) == 12
    sent = grid.push_messages([HelloRequest().to_message(node) for node in reversed(ids)])
    assert len(set(sent)) == 12
    replies = [reply for first in range(0, 12, 5) for reply in grid.pull_messages(sent[first : first + 5])]
    assert [reply.metadata.reply_to_message_id for reply in replies] == sent
    assert [reply.metadata.src_node_id for reply in replies] == ids[::-1]
    hellos = [HelloReply.from_message(reply) for reply in replies]
    assert [hello.name for hello in hellos] == [f"client-{i}" for i in reversed(range(12))]
    assert {hello.num_partitions for hello in hellos} == {12}
    assert grid.pull_messages(sent) == []


def test_a_node_needs_no_more_of_flower_than_a_client_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Flower's engines no run is set where clients answer: they can reply, and make no other message."""

    class Elsewhere(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            with monkeypatch.context() as there:
                there.setattr(TaskIdentity, "_run_id", None)
                return client_app(message, context)

    grid = some_grid(nodes=1, seats=2, app=Elsewhere())
    replies = list(grid.send_and_receive([HelloRequest().to_message(node) for node in grid.get_node_ids()]))
    assert [HelloReply.from_message(reply).name for reply in replies] == ["client-0", "client-1"]


def test_only_clients_that_are_asked_answer_and_a_node_gets_one_message() -> None:
    seen: list[int] = []

    class Counted(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            seen.append(context.node_id)
            return client_app(message, context)

    grid = some_grid(nodes=2, seats=3, app=Counted())
    ids = grid.get_node_ids()
    replies = list(grid.send_and_receive([HelloRequest().to_message(ids[i]) for i in (0, 2, 4)]))
    assert sorted(reply.metadata.src_node_id for reply in replies) == [ids[0], ids[2], ids[4]]
    assert len(seen) == 2


def test_one_client_that_fails_does_not_fail_the_others(run, monkeypatch, together: list[int]) -> None:  # type: ignore[no-untyped-def]
    original = training_job.TrainingJob.__init__

    def fails(self: training_job.TrainingJob, message: Message, context: Context) -> None:
        if context.node_config["partition-id"] == 4:
            raise RuntimeError("no disk")
        original(self, message, context)

    monkeypatch.setattr(training_job.TrainingJob, "__init__", fails)
    for at_once in (1, 3):
        result = run(clients=6, clients_per_node=3, clients_at_once=at_once)
        assert [(row["clients_ok"], row["clients_failed"]) for row in result.rows] == [(5, 1), (5, 1)]
        assert together == ([] if at_once == 1 else [3, 2, 3, 2])


def test_a_reply_of_another_node_is_none(messages: list[str]) -> None:
    grid = some_grid(nodes=2, seats=2)
    ids = grid.get_node_ids()
    sent = grid.push_messages([HelloRequest().to_message(node) for node in ids])
    inner = grid.nodes
    original, honest = inner.pull_messages, list[int]()

    def forged(message_ids: Any) -> list[Message]:
        replies = list(original(message_ids))
        honest.append(replies[1].metadata.src_node_id)
        replies[0].metadata.__dict__["_src_node_id"] = honest[0]
        return replies

    inner.pull_messages = forged  # type: ignore[method-assign]
    replies = list(grid.pull_messages(sent))
    assert [reply.metadata.src_node_id // 2 for reply in replies] == honest * 2
    assert [said for said in messages if "reply rejected" in said]


def test_what_is_never_answered_is_kept_without_its_models() -> None:
    grid = some_grid(nodes=1, seats=2)
    model = ArrayRecord({"w": torch.zeros(1000)})
    grid.push_messages([Message(RecordDict({"arrays": model}), node, "train") for node in grid.get_node_ids()])
    ((_, clients),) = grid.open.values()
    assert len(clients) == 2
    assert not any(len(message.content) for message in clients.values())


def test_a_node_that_fails_or_says_nonsense_fails_for_all_of_its_clients() -> None:
    nonsense = ClientApp()

    @nonsense.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": ArrayRecord()}), reply_to=message)

    grid = some_grid(nodes=1, seats=2, app=nonsense)
    ids = grid.get_node_ids()
    for kind, reason in ((MessageType.TRAIN, "not the bundle"), (MessageType.QUERY, "")):
        replies = list(grid.send_and_receive([Message(RecordDict(), node, kind) for node in ids]))
        assert [reply.metadata.src_node_id for reply in replies] == ids
        assert all(reply.has_error() and reason in reply.error.reason for reply in replies)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"name": "a", "data-path": "/nowhere"}, "a node with data of its own is one client, use 1"),
        ({"partition-id": 3, "num-partitions": 2}, "partition-id: got 3"),
        ({"name": "a", "partition-id": 0, "num-partitions": 2}, "'a' names one client, leave it out"),
    ],
)
def test_a_node_on_which_no_more_can_sit_says_so(node: dict[str, object], reason: str) -> None:
    config = RunConfig.from_flower({"clients-per-node": 2}).to_flower()
    grid = PackedGrid(InlineGrid(client_app, config, [node]), 2)
    (reply,) = grid.send_and_receive([HelloRequest().to_message(grid.get_node_ids()[0])])
    assert reason in reply.error.reason


def test_clients_that_cannot_fill_the_nodes_are_refused_before_anything_is_written(run, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"clients-per-node: got 4; 6 clients cannot fill the nodes"):
        run(clients=6, clients_per_node=4)
    assert not list(tmp_path.iterdir())


def test_what_a_client_keeps_is_its_own_until_the_next_message() -> None:
    app = ClientApp(mods=[answer_for_all])

    @app.query()
    def count(message: Message, context: Context) -> Message:
        kept = context.state.config_records.get("visits", ConfigRecord({"from": []}))
        visits = [*kept["from"], context.node_config["partition-id"]]  # type: ignore[misc]
        context.state["visits"] = ConfigRecord({"from": visits})  # type: ignore[dict-item]
        return Message(RecordDict({"visits": context.state["visits"]}), reply_to=message)

    grid = some_grid(nodes=2, seats=2, app=app)
    ids = grid.get_node_ids()
    for asked in (ids, ids[1:], ids):
        replies = list(grid.send_and_receive([HelloRequest().to_message(node) for node in asked]))
    visits = {reply.metadata.src_node_id: reply.content["visits"]["from"] for reply in replies}  # type: ignore[index]
    assert visits == {ids[0]: [0, 0], **{node: [i] * 3 for i, node in enumerate(ids) if i}}
