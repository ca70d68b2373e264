"""Where the proxy set is not of the task's own data, clients decide between what was distilled and the average."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict
from PIL import Image
from torch.nn import functional as F

from client_app.app import app as client_app
from disue.data import build_federation
from disue.models import State, build_model, get_state
from disue.objective import PLAIN
from disue.wire import CompareReply
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import RunConfig
from strategies import flower
from strategies.aggregation.caps import Caps
from strategies.rounds.comparing import fitted_better_by_average
from strategies.rounds.registry import Client

SMALL = {"a": {"head.bias": torch.zeros(3)}, "b": {"head.bias": torch.zeros(3)}}
GUESS = math.log(3)
CLIENTS = [Client(f"client-{i}", 10 + i, 5, 0, 4, "ab"[i % 2]) for i in range(4)]


@pytest.fixture(autouse=True)
def _a_server() -> None:
    """Messages need one to come from."""
    InlineGrid(client_app, {}, [])


def told(fits: dict[int, tuple[float, float] | None]) -> Callable[[list[Message]], list[Message]]:
    """Answers with these losses; none: the client fails."""

    def ask(messages: list[Message]) -> list[Message]:
        replies = []
        for message in messages:
            if (own := fits.get(message.metadata.dst_node_id, (0.0, 0.0))) is None:
                replies.append(Message(Error(0, "no disk"), reply_to=message))
            else:
                replies.append(CompareReply(*own).to_message(message))
        return replies

    return ask


@pytest.mark.parametrize(
    ("fits", "kept"),
    [
        ({10: (2.0, 1.0), 11: (1.0, 2.0), 12: (1.0, 1.5), 13: (1.0, 2.0)}, {"a"}),
        ({10: (1.0, 1.0), 11: (1.0, 1.0)}, set()),
        ({10: None, 12: (1.0, 2.0), 11: (2.0, 1.0), 13: None}, {"b"}),
        ({10: None, 11: None, 12: None, 13: None}, set()),
        # no loss counts for more than 2 ln 3
        ({10: (1e9, 0.0), 12: (0.0, 2.2), 11: (0.0, 1e9), 13: (2.1, 0.0)}, set()),
        ({10: (2.0, -1e9), 12: (1.0, 2.0), 11: (2.0, 1.0)}, {"b"}),
    ],
)
def test_the_sums_decide_for_each_architecture(
    fits: dict[int, tuple[float, float] | None], kept: set[str], messages: list[str]
) -> None:
    assert fitted_better_by_average(told(fits), CLIENTS, 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == kept
    failed = [node for node, own in fits.items() if own is None or min(own) < 0.0]
    assert len([said for said in messages if "could not compare" in said]) == len(failed)


@pytest.mark.parametrize(("lie", "others"), [((1e9, 0.0), (0.9, 1.0)), ((0.0, 1e9), (1.0, 0.9))])
def test_one_client_does_not_overrule_others_that_agree(lie: tuple[float, float], others: tuple[float, float]) -> None:
    clients = [Client(f"client-{i}", 10 + i, 5, 0, 4, "a") for i in range(4)]
    fits: dict[int, tuple[float, float] | None] = {10: lie, **dict.fromkeys((11, 12, 13), others)}
    kept = fitted_better_by_average(told(fits), clients, 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS)
    assert kept == ({"a"} if others[1] < others[0] else set())


def test_where_most_are_undecided_one_client_does_not_overrule_another() -> None:
    clients = [Client(f"client-{i}", 10 + i, 5, 0, 4, "a") for i in range(5)]
    fits: dict[int, tuple[float, float] | None] = {
        10: (1e9, 0.0),
        11: (0.9, 0.91),
        **dict.fromkeys((12, 13, 14), (2.0, 2.0)),
    }
    assert fitted_better_by_average(told(fits), clients, 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == set()


def test_a_loss_that_counts_for_less_is_logged_once(messages: list[str]) -> None:
    caps, ask = Caps(), told({10: (1e9, 0.0), 12: (0.0, 2.2)})
    for server_round in (1, 2):
        fitted_better_by_average(ask, CLIENTS, server_round, SMALL, SMALL, PLAIN, None, caps, GUESS)
    said = "client-0 says student-fit of 1e+09; it counts as 2.19722, twice that of guessing"
    over = "client-2 says average-fit of 2.2; it counts as 2.19722, twice that of guessing"
    assert sorted(line for line in messages if "counts as" in line) == [said, over]


def test_a_reply_without_the_losses_counts_for_nothing(messages: list[str]) -> None:
    def ask(requests: list[Message]) -> list[Message]:
        half = Message(RecordDict({"metrics": MetricRecord({"student-fit": 1.0})}), reply_to=requests[0])
        return [half, Message(RecordDict(), reply_to=requests[1]), *told({12: (2.0, 1.0)})(requests[2:])]

    assert fitted_better_by_average(ask, CLIENTS, 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == {"a"}
    assert len([said for said in messages if "could not compare" in said]) == 2


def test_who_has_another_architecture_is_not_asked_and_nobody_may_be_there() -> None:
    seen: list[int] = []

    def ask(requests: list[Message]) -> list[Message]:
        seen.extend(request.metadata.dst_node_id for request in requests)
        return []

    assert fitted_better_by_average(ask, CLIENTS, 3, {"b": SMALL["b"]}, SMALL, PLAIN, None, Caps(), GUESS) == set()
    assert seen == [11, 13]
    assert fitted_better_by_average(ask, [], 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == set()


def test_the_losses_are_those_on_the_training_data_with_the_clients_own_prior() -> None:
    config = RunConfig.from_flower({"model": "mlp"})
    grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(3))
    nodes = grid.get_node_ids()
    clients = [Client(f"client-{i}", node, 5, 0, 3, "mlp") for i, node in enumerate(nodes)]
    one, other = (get_state(build_model("mlp", (1, 8, 8), 10, seed)) for seed in (1, 2))
    replies: list[Message] = []

    def ask(requests: list[Message]) -> list[Message]:
        replies.extend(grid.send_and_receive(requests))
        return replies

    kept = fitted_better_by_average(ask, clients, 1, {"mlp": one}, {"mlp": other}, PLAIN, None, Caps(), math.log(10))
    federation = build_federation(config, 3)

    def loss(state: State, client: int) -> float:
        data = federation.client(client).train
        counts = torch.bincount(data.y, minlength=10) + 0.1
        model = build_model("mlp", (1, 8, 8), 10).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            return float(F.cross_entropy(model(data.x) + (counts / counts.sum()).log(), data.y))

    expected = [[loss(state, i) for i in range(3)] for state in (one, other)]
    for i, reply in enumerate(map(CompareReply.from_message, replies)):
        assert (reply.student_fit, reply.average_fit) == pytest.approx((expected[0][i], expected[1][i]), rel=1e-4)
    assert kept == ({"mlp"} if sum(expected[1]) < sum(expected[0]) else set())


@pytest.mark.parametrize("keep", [True, False])
def test_in_a_run_clients_are_asked_about_a_foreign_proxy_set_and_their_answer_counts(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    grey = np.random.default_rng(0).integers(120, 136, size=(40, 8, 8), dtype=np.uint8)
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    asked: list[int] = []

    def decide(ask, clients, server_round, taught, averages, *rest):  # type: ignore[no-untyped-def]
        fitted_better_by_average(ask, clients, server_round, taught, averages, *rest)
        asked.append(len(clients))
        return set(taught) if keep else set()

    monkeypatch.setattr(flower, "fitted_better_by_average", decide)
    settings = {"clients": 6, "num_clusters": 2, "num_groups": 2}
    result = run(**settings, proxy=f"path:{tmp_path}")
    assert asked == [6, 6]
    for row in result.rows:
        assert row["guard_kept_average"] == int(keep)
        assert (row["universal_accuracy"] == row["average_accuracy"]) is keep
    asked.clear()
    run(**settings)
    run(**settings, proxy=f"path:{tmp_path}", privacy="dp", dp_noise=0.05)
    assert not asked
