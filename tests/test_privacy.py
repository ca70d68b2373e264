"""docs/PRIVACY.md against what the server receives: every field that leaves a client, and no other."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message

from client_app.app import app as client_app
from disue.cli.inline import InlineGrid, simulated_nodes
from disue.config import RunConfig, parse_assignments
from disue.data import load_dataset
from disue.models import build_model
from server_app.run import execute
from strategies.clusterers import CLUSTERERS

PAGE = Path(__file__).parents[1] / "docs" / "PRIVACY.md"
NOT_SENT = "–"
KINDS = {"query": "hello", "query.describe": "describe", "train": "train", "evaluate": "evaluate"}
SMALL = {"model": "mlp", "num-server-rounds": 2, "local-epochs": 1, "distill-steps": 5, "report": False}
DESCRIBED_BY = ("initial-prototypes", "subspace")

Values = dict[str, Any]
Answer = Callable[[Message, Context], Message]
Field = tuple[str, str, str]
"""Message, record and field."""


def chooses(config: RunConfig) -> bool:
    return config.method == "ifca" or (config.method == "disue" and config.clusterer == "ifca")


def describes(config: RunConfig) -> bool:
    by_signature = config.method == "disue" and config.clusterer in CLUSTERERS and config.signature in DESCRIBED_BY
    return config.method == "pacfl" or by_signature


WHEN: dict[str, Callable[[RunConfig, int], bool]] = {
    "always": lambda config, round: True,
    "failed": lambda config, round: True,
    "own data": lambda config, round: config.dataset == "own",
    "described": lambda config, round: describes(config),
    "chosen": lambda config, round: chooses(config),
    "`method=disue`": lambda config, round: config.method == "disue",
    "personal": lambda config, round: config.method == "fedavg-ft" or round == config.num_server_rounds,
    "compared": lambda config, round: config.method == "disue" and config.initialisation == "learned",
}
"""What the words of the column "when" mean."""

RUNS: list[Values] = [
    {},
    {"signature": "subspace", "initialisation": "universal"},
    {"clusterer": "ifca"},
    {"method": "ifca"},
    {"method": "pacfl"},
    {"method": "fedavg-ft"},
    {"dataset": "own", "input-shape": "1x8x8", "proxy": "dataset:digits"},
]
"""Among these each field is sent by some and, unless it always is, not by others."""


@dataclass(frozen=True)
class Line:
    """A line of the table: a field, when it is sent, and what it is in each mode."""

    field: Field
    when: str
    what: dict[str, str]

    def sent(self, mode: str, config: RunConfig, server_round: int) -> bool:
        return self.what[mode] != NOT_SENT and WHEN[self.when](config, server_round)


def table() -> tuple[dict[str, Values], list[Line]]:
    """Return the modes, with the settings in their names, and the lines."""
    text = PAGE.read_text().split("<!-- wire -->\n")[1].split("\n\n")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert head[:4] == ["message", "record", "field", "when"]
    modes = {name: parse_assignments(re.findall("`(.+?)`", name)) for name in head[4:]}
    lines = [Line((m, r, f), when, dict(zip(head[4:], what, strict=True))) for m, r, f, when, *what in rows]
    return modes, lines


class RecordingGrid(InlineGrid):
    """Keeps every message that the server receives, as it was received."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.received += replies
        return replies


def own_nodes(root: Path) -> list[dict[str, object]]:
    """Return four clients with digits of their own, each of some classes."""
    digits = load_dataset("digits").train
    nodes: list[dict[str, object]] = []
    for i in range(4):
        chosen = torch.isin(digits.y, torch.arange(5) + 5 * (i % 2)).nonzero().flatten()[40 * i : 40 * i + 40]
        x, y = digits.x[chosen, 0].numpy() / 16.0, digits.y[chosen].numpy()
        np.savez(root / f"{i}.npz", x=x.astype(np.float32), y=y)
        nodes.append({"name": f"hospital-{i}", "data-path": str(root / f"{i}.npz")})
    return nodes


def recorded(
    values: Values, root: Path, app: Callable[[Message, Context], Message] = client_app
) -> tuple[RunConfig, list[Message]]:
    """Run with these settings, and return what the server received."""
    config = RunConfig.from_flower(SMALL | {"output-dir": str(root / "run")} | values)
    nodes = own_nodes(root) if config.dataset == "own" else simulated_nodes(4)
    grid = RecordingGrid(app, config.to_flower(), nodes)
    execute(config, grid)
    return config, grid.received


def fields_of(message: Message) -> set[Field]:
    if message.has_error():
        return {("failure", "error", key.strip("_")) for key in vars(message.error)}
    kind = KINDS[message.metadata.message_type]
    return {(kind, name, key) for name, record in message.content.items() for key in record}


def expected(lines: list[Line], mode: str, config: RunConfig, message: Message) -> set[Field]:
    kind = "failure" if message.has_error() else KINDS[message.metadata.message_type]
    server_round = int(message.metadata.group_id or 0)
    sent = {line.field for line in lines if line.field[0] == kind and line.sent(mode, config, server_round)}
    parameters = build_model(config.model, (1, 8, 8), 10).state_dict()
    return {(m, r, name) for m, r, f in sent for name in (parameters if f == "*" else [f])}


MODES, LINES = table()


@pytest.mark.parametrize("mode", MODES)
def test_what_the_server_receives_is_what_the_page_says(mode: str, tmp_path: Path) -> None:
    seen: set[str] = set()
    for number, values in enumerate(RUNS):
        root = tmp_path / str(number)
        root.mkdir()
        config, received = recorded(values | MODES[mode], root)
        assert {KINDS[message.metadata.message_type] for message in received} >= {"hello", "train", "evaluate"}
        for message in received:
            wanted = expected(LINES, mode, config, message)
            assert fields_of(message) == wanted, (values, message.metadata.message_type)
            kind, server_round = KINDS[message.metadata.message_type], int(message.metadata.group_id or 0)
            seen |= {
                "/".join(line.field)
                for line in LINES
                if line.field[0] == kind and line.sent(mode, config, server_round)
            }
    sent = {"/".join(line.field) for line in LINES if line.what[mode] != NOT_SENT and line.when != "failed"}
    assert seen == sent, "the page says of these that they leave a client, and no run sent them"


def failing(message: Message, context: Context) -> Message:
    """Answer as the real app, with an error where the second client should train."""
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
        message.content["config"]["server-round"] = "no number"
    return client_app(message, context)


@pytest.mark.parametrize("mode", MODES)
def test_a_failure_is_what_the_page_says(mode: str, tmp_path: Path) -> None:
    config, received = recorded(MODES[mode], tmp_path, failing)
    failures = [message for message in received if message.has_error()]
    assert failures
    for message in failures:
        assert fields_of(message) == expected(LINES, mode, config, message)


def test_the_envelope_is_what_the_page_says(tmp_path: Path) -> None:
    _, received = recorded({"method": "fedavg"}, tmp_path)
    ids = {"run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "src_task_id", "dst_task_id"}
    for message in received:
        assert {key.strip("_") for key in vars(message.metadata)} == ids | {
            *("group_id", "created_at", "delivered_at", "ttl", "message_type"),
        }


def test_a_field_that_the_page_does_not_name_is_found(tmp_path: Path) -> None:
    """The comparison can fail: without its line in the table, and with one too many."""
    config, received = recorded({"method": "fedavg"}, tmp_path)
    message = next(message for message in received if message.metadata.message_type == "train")
    mode = next(iter(MODES))
    assert fields_of(message) == expected(LINES, mode, config, message)
    without = [line for line in LINES if line.field != ("train", "metrics", "train-loss")]
    assert fields_of(message) != expected(without, mode, config, message)
    more = [*LINES, replace(LINES[0], field=("train", "metrics", "age"))]
    assert fields_of(message) != expected(more, mode, config, message)


def test_only_which_classes_there_are_leaves_where_label_counts_are_kept_back(tmp_path: Path) -> None:
    _, received = recorded({"share-label-counts": False}, tmp_path)
    signatures = [m.content["signature"] for m in received if m.metadata.message_type == "train"]
    assert len(signatures) == 8
    for signature in signatures:
        assert set(torch.from_numpy(signature["label-counts"].numpy()).tolist()) <= {0.0, 1.0}
