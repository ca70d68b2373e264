"""Clients whose own data change while a run goes on: the real ServerApp and ClientApp, in this process."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from tests_support import ChangingGrid

from client_app.app import app as client_app
from disue.data import load_dataset
from server_app.callbacks.ledger import LEDGER
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import execute
from server_app.stopping import ask_to_stop

DIGITS = load_dataset("digits").train
LOW, HIGH = range(5), range(5, 10)
NAMES = "abcdefg"
LOW_ONES = "abcd"
"""Four have the digits to 4, and three the others."""
SETTINGS: dict[str, Any] = {
    "dataset": "own",
    "classes": "0,1,2,3,4,5,6,7,8,9",
    "input-shape": "1x8x8",
    "model": "mlp",
    "num-server-rounds": 4,
    "local-epochs": 2,
    "learning-rate": 0.1,
    "distill-steps": 5,
    "proxy": "dataset:digits",
    "join-timeout": 1.0,
    "min-cluster-size": 1,
    "report": False,
}
SECURE = {"privacy": "secure", "sketch-size": 64}
Row = dict[str, Any]
OnRound = Callable[[Row], object]


def write_digits(path: Path, classes: Iterable[int], start: int, count: int = 40) -> None:
    """Write so many images of these digits; the high ones lie on their side, which can be seen without labels."""
    y = DIGITS.y.numpy()
    chosen = np.flatnonzero(np.isin(y, list(classes)))[start : start + count]
    x = (DIGITS.x.numpy()[chosen, 0] * 15).astype(np.uint8)
    np.savez(path, x=np.rot90(x, axes=(1, 2)) if classes == HIGH else x, y=y[chosen])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files of seven clients."""
    place = tmp_path / "data"
    place.mkdir()
    for i, name in enumerate(NAMES):
        write_digits(place / f"{name}.npz", LOW if name in LOW_ONES else HIGH, 40 * i)
    return place


class Nodes(ChangingGrid):
    """The clients' nodes.

    Attributes
    ----------
    described : list of (int, str)
        The round that was trained last, and the client, of each request for a description.
    early : list of (int, str)
        The same of requests to tell of early features.
    trained : list of (int, str)
        The same of requests to train.
    """

    def __init__(self, config: RunConfig, data: Path) -> None:
        nodes: list[dict[str, object]] = [{"name": name, "data-path": str(data / f"{name}.npz")} for name in NAMES]
        super().__init__(client_app, config.to_flower(), nodes)
        self.described: list[tuple[int, str]] = []
        self.early: list[tuple[int, str]] = []
        self.trained: list[tuple[int, str]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            name = str(self.contexts[message.metadata.dst_node_id].node_config["name"])
            if message.metadata.message_type == "train":
                self.trained.append((int(message.metadata.group_id), name))
            if message.metadata.message_type == "query.describe":
                self.described.append((self.trained[-1][0] if self.trained else 0, name))
            if message.metadata.message_type == "query.early":
                self.early.append((int(message.metadata.group_id), name))
        return super().push_messages(messages)

    def restart(self, name: str) -> None:
        """Let a client's process start anew, as another node."""
        (node,) = (node for node, own in self.contexts.items() if own.node_config["name"] == name)
        old = self.forget(node)
        self.contexts[self.add_node(dict(old.node_config))].run_config.update(old.run_config)


def make_config(directory: Path, **changes: Any) -> RunConfig:
    values = SETTINGS | {key.replace("_", "-"): value for key, value in changes.items()}
    return RunConfig.from_flower(values | {"output-dir": str(directory)})


def moves_of(directory: Path) -> list[tuple[int, str, str]]:
    """Return in which round which client came to which cluster."""
    with (directory / "membership.csv").open(newline="") as file:
        return [(int(row["round"]), row["client"], row["cluster"]) for row in csv.DictReader(file)]


def after(number: int, act: Callable[[], object]) -> OnRound:
    """Return what does something once a round is recorded, before the next."""
    return lambda row: act() if row["round"] == number else None


def require_one_move(directory: Path, number: int, name: str = "b") -> None:
    """Assert that all clients are in their groups' clusters, and that one moved to the other in a round."""
    first, later = ([move for move in moves_of(directory) if (move[0] == 1) == wanted] for wanted in (True, False))
    clusters = {client: cluster for _, client, cluster in first}
    assert sorted(clusters) == list(NAMES)
    assert len({clusters[client] for client in LOW_ONES}) == 1
    assert len({clusters[client] for client in NAMES if client not in LOW_ONES}) == 1
    assert clusters["a"] != clusters["g"]
    assert later == [(number, name, clusters["g"])]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"signature": "subspace"},
        {"signature": "anchor-gradient", "num-clusters": 2},
        {"method": "pacfl"},
        {"method": "stocfl", "stocfl-tau": 0.3},
        SECURE,
    ],
    ids=["disue", "subspace", "anchor-gradient", "pacfl", "stocfl", "secure"],
)
def test_a_client_whose_file_is_exchanged_describes_again_and_its_cluster_follows_and_no_other(
    settings: dict[str, Any], tmp_path: Path, data: Path
) -> None:
    config = make_config(tmp_path / "r", **settings)
    nodes = Nodes(config, data)
    summary = execute(config, nodes, after(2, lambda: write_digits(data / "b.npz", HIGH, 300)))
    assert summary["status"] == "completed"
    assert sorted(nodes.described) == [*((0, name) for name in NAMES), (3, "b")]
    tells = config.method == "disue" and config.privacy == "plain"
    assert sorted(nodes.early) == ([*((1, name) for name in NAMES), (3, "b")] if tells else [])
    require_one_move(tmp_path / "r", 3)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_clusters"] for row in rows] == [2] * 4
    assert [row["churn"] > 0 for row in rows] == [False, False, True, False]


def test_it_follows_in_the_next_round_that_samples_it(tmp_path: Path, data: Path) -> None:
    config = make_config(tmp_path / "r", fraction_train=0.45, num_server_rounds=6, seed=3)
    nodes = Nodes(config, data)
    execute(config, nodes, after(4, lambda: write_digits(data / "b.npz", HIGH, 300)))
    assert [number for number, name in nodes.trained if name == "b"] == [4, 6], "or the test shows nothing"
    assert nodes.described[-1] == (6, "b")
    require_one_move(tmp_path / "r", 6)


def test_it_follows_when_the_run_goes_on_after_a_break_and_nobody_else_is_asked(tmp_path: Path, data: Path) -> None:
    """For Flower it is another run, with other contexts, in which digests are those of the first."""
    directory = tmp_path / "r"
    config = make_config(directory)
    execute(config, Nodes(config, data), after(2, lambda: ask_to_stop(directory)))
    write_digits(data / "b.npz", HIGH, 300)
    config = resumed_config({"resume-from": str(directory)})
    nodes = Nodes(config, data)
    nodes.run.run_id = 77
    assert execute(config, nodes)["status"] == "completed"
    assert nodes.described == [(3, "b")]
    require_one_move(directory, 3)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_is_only_touched_is_no_change(restarted: bool, tmp_path: Path, data: Path) -> None:
    """Nor is one that is written again as it was, or found by a process that has just begun."""
    config = make_config(tmp_path / "r")
    nodes = Nodes(config, data)

    def touch() -> None:
        os.utime(data / "a.npz")
        write_digits(data / "b.npz", LOW, 40)
        if restarted:
            nodes.restart("c")

    execute(config, nodes, after(2, touch))
    again = [(2, "c")] if restarted else []  # who comes back is always asked, before it trains
    assert sorted(nodes.described) == sorted([*((0, name) for name in NAMES), *again])
    assert {number for number, *_ in moves_of(tmp_path / "r")} == {1}


def test_a_process_that_starts_anew_with_other_data_describes_them_before_it_trains(tmp_path: Path, data: Path) -> None:
    config = make_config(tmp_path / "r")
    nodes = Nodes(config, data)

    def restart() -> None:
        write_digits(data / "b.npz", HIGH, 300)
        nodes.restart("b")

    execute(config, nodes, after(2, restart))
    assert nodes.described[-1] == (2, "b")
    assert len(nodes.described) == len(NAMES) + 1
    require_one_move(tmp_path / "r", 3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"nothing"), "DataError: b: 'b.npz' cannot be read"),
        (lambda path: path.unlink(), "DataError: b: data-path is neither a folder nor an .npz file"),
        (lambda path: write_digits(path, LOW, 0, 2), "DataError: b: 2 images are too few"),
        (
            lambda path: np.savez(path, x=np.zeros((20, 8, 8)), y=np.arange(20) % 2 + 9),
            "DataError: b: classes that this run does not have: '10'; it has '0', '1'",
        ),
    ],
    ids=["broken", "gone", "too few", "another class"],
)
def test_a_file_that_breaks_costs_its_client_the_rounds_until_it_is_mended(
    spoil: Callable[[Path], object], words: str, tmp_path: Path, data: Path, messages: list[str]
) -> None:
    """One line for what was asked of it, and the others go on."""
    config = make_config(tmp_path / "r", num_server_rounds=5)
    nodes = Nodes(config, data)
    before = (data / "b.npz").read_bytes()

    def change(row: Row) -> None:
        if row["round"] == 2:
            spoil(data / "b.npz")
        if row["round"] == 4:
            (data / "b.npz").write_bytes(before)

    execute(config, nodes, change)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["clients_ok"], row["clients_failed"]) for row in rows] == [(7, 0), (7, 0), (6, 1), (6, 1), (7, 0)]
    said = [line for line in messages if line.startswith(f"b failed: {words}")]
    assert len(said) == 2, "once a round"
    assert all("\n" not in line and str(data) not in line for line in said)
    assert len(nodes.described) == len(NAMES)
    assert {number for number, *_ in moves_of(tmp_path / "r")} == {1}


def test_a_method_without_descriptions_pays_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("nobody asked for a digest")

    monkeypatch.setattr("client_app.client.LocalClient.digest", never)
    updates = {"signature": "last-layer", "early_features": 0}
    for name, settings in {"fedavg": {"method": "fedavg"}, "updates": updates}.items():
        config = make_config(tmp_path / name, num_server_rounds=2, **settings)
        nodes = Nodes(config, data)
        summary = execute(config, nodes, after(1, lambda: write_digits(data / "b.npz", HIGH, 300)))
        assert summary["clients_failed"] == 0
        assert nodes.described == []


def test_early_features_are_told_again_where_clients_describe_nothing(tmp_path: Path, data: Path) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=3, signature="last-layer")
    nodes = Nodes(config, data)
    execute(config, nodes, after(1, lambda: write_digits(data / "b.npz", HIGH, 300)))
    assert nodes.described == []
    assert sorted(nodes.early) == [*((1, name) for name in NAMES), (2, "b")]


def test_with_noise_nobody_says_that_its_data_changed_and_releases_are_as_planned(tmp_path: Path, data: Path) -> None:
    """It describes them when it comes back, which counts as it always did."""
    config = make_config(tmp_path / "r", privacy="dp", dp_noise=1e-4, num_server_rounds=5)
    nodes = Nodes(config, data)

    def change(row: Row) -> None:
        if row["round"] == 2:
            write_digits(data / "b.npz", HIGH, 300)
        if row["round"] == 4:
            nodes.restart("b")

    execute(config, nodes, change)
    assert sorted(nodes.described) == [*((0, name) for name in NAMES), (4, "b")]
    require_one_move(tmp_path / "r", 5)
    planned = 1 + 5 * 2 + 5  # a description; update, signature and evaluation in every round
    assert json.loads((tmp_path / "r" / LEDGER).read_text()) == dict.fromkeys(NAMES, planned) | {"b": planned + 1}
