"""Clients say how well mixtures of student and average fit their data, and so choose the student's share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests_support import calls_of
from torch.nn import functional as F

from client_app.app import app as client_app
from disue.data import build_federation
from disue.models import build_model, get_state
from disue.objective import PLAIN
from disue.wire import CompareReply
from disue.wire.compare import SHARES
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import RunConfig
from strategies import flower
from strategies.aggregation.caps import Caps
from strategies.rounds.comparing import best_shares, num_asked
from strategies.rounds.registry import Client

SMALL = {"a": {"head.bias": torch.zeros(3)}, "b": {"head.bias": torch.zeros(3)}}
GUESS = math.log(3)
CLIENTS = [Client(f"client-{i}", 10 + i, 5, 0, 4, "ab"[i % 2]) for i in range(4)]
ALIKE = [Client(f"client-{i}", 10 + i, 5, 0, 4, "a") for i in range(5)]
Fits = tuple[float, ...]


@pytest.fixture(autouse=True)
def _a_server() -> None:
    """Messages need one to come from."""
    InlineGrid(client_app, {}, [])


def told(fits: dict[int, Fits | None]) -> Callable[[list[Message]], list[Message]]:
    """Answers with these losses; none: the client fails."""

    def ask(messages: list[Message]) -> list[Message]:
        replies = []
        for message in messages:
            if (own := fits.get(message.metadata.dst_node_id, (1.0,) * 5)) is None:
                replies.append(Message(Error(0, "no disk"), reply_to=message))
            else:
                replies.append(CompareReply(own).to_message(message))
        return replies

    return ask


def shares(
    fits: dict[int, Fits | None], clients: Sequence[Client] = CLIENTS, caps: Caps | None = None
) -> dict[str, float]:
    return best_shares(told(fits), clients, 3, SMALL, SMALL, PLAIN, None, caps or Caps(), GUESS)


def lowest(at: int, depth: float = 0.5) -> Fits:
    """Losses that are lowest at one of the mixtures, and rise with the distance from there."""
    return tuple(1.0 + depth * abs(i - at) / 4 for i in range(5))


def test_mixtures_go_from_the_average_to_the_student() -> None:
    assert SHARES[0] == 0.0
    assert SHARES[-1] == 1.0
    assert list(SHARES) == sorted(SHARES)


@pytest.mark.parametrize(
    ("fits", "best"),
    [
        ({10: lowest(0), 12: lowest(0), 11: lowest(4), 13: lowest(4)}, {"a": 0.0, "b": 1.0}),
        ({10: lowest(1), 12: lowest(3), 11: lowest(2), 13: lowest(2)}, {"a": 0.25, "b": 0.5}),  # all between are alike
        ({10: lowest(3, 0.5), 12: lowest(3, 0.9), 11: lowest(3), 13: lowest(2, 0.1)}, {"a": 0.75, "b": 0.5}),
        ({}, {"a": 0.0, "b": 0.0}),
        ({10: None, 12: lowest(1), 11: lowest(2), 13: None}, {"a": 0.25, "b": 0.5}),
        ({10: None, 12: None, 11: lowest(2), 13: None}, {"a": None, "b": 0.5}),
        (dict.fromkeys((10, 11, 12, 13)), {"a": None, "b": None}),
        # no loss counts for more than 2 ln 3: for who is beyond that with all, they are alike
        ({10: (1e9, 8e8, 7e8, 6e8, 5e8), 11: lowest(1), 13: lowest(1)}, {"a": 0.0, "b": 0.25}),
        # what is no loss is refused
        ({10: (1.0, -1e9, 1.0, 1.0, 1.0), 12: lowest(2), 11: lowest(3), 13: lowest(3)}, {"a": 0.5, "b": 0.75}),
        ({10: (1.0, math.nan, 1.0, 1.0, 1.0), 12: lowest(2), 11: (1.0, 0.5), 13: lowest(3)}, {"a": 0.5, "b": 0.75}),
        ({10: (*lowest(1), 0.0), 12: lowest(2), 11: (), 13: lowest(3)}, {"a": 0.5, "b": 0.75}),
    ],
)
def test_the_sums_decide_for_each_architecture(
    fits: dict[int, Fits | None], best: dict[str, float | None], messages: list[str]
) -> None:
    assert shares(fits) == {model: share for model, share in best.items() if share is not None}
    failed = [own for own in fits.values() if own is None or len(own) != 5 or not min(own) >= 0 or math.isnan(sum(own))]
    assert len([said for said in messages if "could not compare" in said]) == len(failed)


@given(st.lists(st.lists(st.floats(0.5, 1.5), min_size=5, max_size=5), min_size=1, max_size=5))
def test_without_bounds_by_the_others_it_is_the_first_lowest_sum(fits: list[list[float]]) -> None:
    said: dict[int, Fits | None] = {10 + i: tuple(own) for i, own in enumerate(fits)}
    found = shares(said, ALIKE[: len(fits)], Caps(max_fit=0.0))["a"]
    sums = np.sum(fits, axis=0)
    i = SHARES.index(found)
    assert sums[i] <= sums.min() + 1e-9
    assert not any(sums[j] < sums[i] - 1e-9 for j in range(i))


@pytest.mark.parametrize("lie", [(0.0, *[1e9] * 4), (1e9, 1e9, 1e9, 1e9, 0.0), (1e9, 1e9, 0.0, 1e9, 1e9)])
@pytest.mark.parametrize("at", range(5))
def test_one_client_moves_each_sum_by_a_bounded_amount(lie: Fits, at: int) -> None:
    """By no more than two of the others' gaps: it does not make the average worse than what the four agree on."""
    others = lowest(at)
    found = shares({10: lie, **dict.fromkeys((11, 12, 13, 14), others)}, ALIKE)["a"]
    gaps = [loss - others[0] for loss in others]
    own = gaps[SHARES.index(found)]
    assert own <= 0.0
    assert all(4 * own - 2 * abs(own) <= 4 * gap + 2 * abs(gap) for gap in gaps)


def test_where_most_are_undecided_one_client_does_not_overrule_another() -> None:
    fits: dict[int, Fits | None] = {
        10: (0.0, 1e9, 1e9, 1e9, 1e9),
        11: (0.91, 0.9, 0.9, 0.9, 0.9),
        **dict.fromkeys((12, 13, 14), (2.0,) * 5),
    }
    assert shares(fits, ALIKE) == {"a": 0.0}
    fits[10] = None
    assert shares(fits, ALIKE) == {"a": 0.25}


def test_a_loss_that_counts_for_less_is_logged_once(messages: list[str]) -> None:
    caps = Caps()
    for _ in range(2):
        shares({10: (1.0, 1.0, 1.0, 1.0, 1e9), 12: (2.2, 1.0, 1.0, 1.0, 1.0)}, caps=caps)
    said = "client-0 says fits of 1e+09; it counts as 2.19722, twice that of guessing"
    over = "client-2 says fits of 2.2; it counts as 2.19722, twice that of guessing"
    assert sorted(line for line in messages if "twice that of guessing" in line) == [said, over]


def test_a_reply_without_the_losses_counts_for_nothing(messages: list[str]) -> None:
    def ask(requests: list[Message]) -> list[Message]:
        single = Message(RecordDict({"metrics": MetricRecord({"fits": 1.0})}), reply_to=requests[0])
        return [single, Message(RecordDict(), reply_to=requests[1]), *told({12: lowest(3)})(requests[2:3])]

    assert best_shares(ask, CLIENTS, 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == {"a": 0.75}
    assert len([said for said in messages if "could not compare" in said]) == 2


def test_who_has_another_architecture_is_not_asked_and_nobody_may_be_there() -> None:
    seen: list[int] = []

    def ask(requests: list[Message]) -> list[Message]:
        seen.extend(request.metadata.dst_node_id for request in requests)
        return []

    assert best_shares(ask, CLIENTS, 3, {"b": SMALL["b"]}, SMALL, PLAIN, None, Caps(), GUESS) == {}
    assert seen == [11, 13]
    assert best_shares(ask, [], 3, SMALL, SMALL, PLAIN, None, Caps(), GUESS) == {}


def test_a_few_are_asked() -> None:
    assert [num_asked(clients) for clients in (1, 4, 5, 6, 50, 51, 1000)] == [1, 4, 5, 5, 5, 6, 100]


def test_the_losses_are_those_on_the_training_data_with_the_clients_own_prior() -> None:
    config = RunConfig.from_flower({"model": "mlp"})
    grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(3))
    nodes = grid.get_node_ids()
    clients = [Client(f"client-{i}", node, 5, 0, 3, "mlp") for i, node in enumerate(nodes)]
    student, average = (get_state(build_model("mlp", (1, 8, 8), 10, seed)) for seed in (1, 2))
    replies: list[Message] = []

    def ask(requests: list[Message]) -> list[Message]:
        replies.extend(grid.send_and_receive(requests))
        return replies

    found = best_shares(
        ask, clients, 1, {"mlp": student}, {"mlp": average}, PLAIN, None, Caps(max_fit=0.0), math.log(10)
    )
    federation = build_federation(config, 3)

    def loss(share: float, client: int) -> float:
        data = federation.client(client).train
        counts = torch.bincount(data.y, minlength=10) + 0.1
        model = build_model("mlp", (1, 8, 8), 10).eval()
        model.load_state_dict({name: (1 - share) * average[name] + share * student[name] for name in student})
        with torch.no_grad():
            return float(F.cross_entropy(model(data.x) + (counts / counts.sum()).log(), data.y))

    expected = np.array([[loss(share, i) for share in SHARES] for i in range(3)])
    by_node = {reply.metadata.src_node_id: CompareReply.from_message(reply).fits for reply in replies}
    assert expected == pytest.approx(np.array([by_node[node] for node in nodes]), rel=1e-4)
    assert found == {"mlp": SHARES[int(expected.sum(axis=0).argmin())]}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_in_a_run_a_few_clients_are_asked_and_their_answer_counts(
    run, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    asked: list[set[str]] = []
    mixed: list[tuple[Any, Any]] = []

    def decide(ask, clients, server_round, students, averages, *rest):  # type: ignore[no-untyped-def]
        assert best_shares(ask, clients, server_round, students, averages, *rest).keys() == {"mlp"}
        asked.append({client.name for client in clients})
        mixed.append((students["mlp"], averages["mlp"]))
        return {"mlp": share}

    monkeypatch.setattr(flower, "best_shares", decide)
    settings = {"clients": 8, "num_clusters": 2, "num_groups": 2, "calibration_epochs": 0}
    result = run(**settings)
    assert [len(names) for names in asked] == [5, 5]
    student, average = mixed[-1]
    universal = load_file(result.directory / "universal.safetensors")
    for name, tensor in universal.items():
        torch.testing.assert_close(tensor, (1 - share) * average[name] + share * student[name])
    assert [row["student_share"] for row in result.rows] == [share] * 2
    assert [row["guard_kept_average"] for row in result.rows] == [int(share == 0.0)] * 2
    for row in result.rows:
        assert (row["universal_accuracy"] == row["average_accuracy"]) is (share == 0.0)


def test_where_nobody_answers_it_is_the_share_of_the_settings(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(flower, "best_shares", lambda *rest: {})
    result = run(clients=6, num_clusters=2, num_groups=2, student_share=0.3)
    assert [row["student_share"] for row in result.rows] == [0.3, 0.3]


def test_with_dp_nobody_is_asked(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    asked = calls_of(monkeypatch, flower, "best_shares")
    result = run(clients=6, num_clusters=2, num_groups=2, privacy="dp", dp_noise=0.05)
    assert not asked
    assert not any("student_share" in row for row in result.rows)
