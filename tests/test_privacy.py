"""docs/PRIVACY.md against what the server receives: every field that leaves a client, and no other."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from tests_support import RecordingGrid

import client_app.client as client
from client_app.app import app as client_app
from client_app.release import noisy
from client_app.release.gaussian import Draw
from disue.assignments import parse_assignments
from disue.data import ClientData, Examples, load_dataset
from disue.errors import DataError, FederationError
from disue.models import build_model, get_state
from disue.nodes import NodeConfig
from disue.tasks import ImageClassification
from disue.wire import CompareRequest, EarlyRequest, FeaturesRequest
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.ledger import LEDGER
from server_app.config import RunConfig
from server_app.run import execute
from strategies.clustering.estimators import CLUSTERERS
from strategies.distillation.teachers import TEACHERS

PAGE = Path(__file__).parents[1] / "docs" / "PRIVACY.md"
NOT_SENT = "–"
KINDS = {"query": "hello", "query.describe": "describe", "train": "train", "evaluate": "evaluate"}
KINDS |= {f"query.{step}": step for step in ("share", "mask", "unmask", "compare", "features", "early", "forget")}
SMALL = {"model": "mlp", "num-server-rounds": 2, "local-epochs": 1, "distill-steps": 5, "report": False}
DESCRIBED_BY = ("initial-prototypes", "subspace", "anchor-gradient")

Values = dict[str, Any]
Answer = Callable[[Message, Context], Message]
Field = tuple[str, str, str]
"""Message, record and field."""


def chooses(config: RunConfig) -> bool:
    return config.method == "ifca" or (config.method == "disue" and config.clusterer == "ifca")


def describes(config: RunConfig) -> bool:
    by_signature = config.method == "disue" and config.clusterer in CLUSTERERS and config.signature in DESCRIBED_BY
    return config.method in ("pacfl", "stocfl") or by_signature


def tells(config: RunConfig) -> bool:
    may = config.privacy == "plain" and config.share_label_counts and config.early_features > 0
    return config.method == "disue" and may and TEACHERS.looks_at_densities(config.teacher, config.proxy == "generator")


WHEN: dict[str, Callable[[RunConfig, int], bool]] = {
    "always": lambda config, round: True,
    "failed": lambda config, round: True,
    "own data": lambda config, round: config.dataset == "own",
    "described": lambda config, round: describes(config),
    "two models": lambda config, round: config.method == "stocfl",
    "chosen": lambda config, round: chooses(config),
    "sketched": lambda config, round: config.method == "disue" and not describes(config),
    "`method=disue`": lambda config, round: config.method == "disue",
    "described or told": lambda config, round: describes(config) or tells(config),
    "told": lambda config, round: tells(config),
    "`method=ccvr`": lambda config, round: config.method == "ccvr",
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
    {"method": "stocfl"},
    {"method": "ccvr"},
    {"method": "ditto"},
    {"method": "fedavg-ft"},
    {"signature": "last-layer"},
    {"proxy": "dataset:digits", "num-clusters": 2, "num-groups": 2},
    {"dataset": "own", "classes": "0,1,2,3,4,5,6,7,8,9", "input-shape": "1x8x8", "proxy": "dataset:digits"},
]
"""Among these each field is sent by some and, unless it always is, not by others."""
UNCOVERED = ({"signature": "subspace", "initialisation": "universal"}, {"clusterer": "ifca"}, {"method": "ifca"})
UNCOVERED += ({"method": "pacfl"}, {"method": "stocfl"}, {"method": "ccvr"})
"""Those that other modes than plain refuse."""
NEED_COUNTS = ({"method": "ccvr"},)
"""Those that are refused where label counts are not told."""


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


def own_nodes(root: Path, shift: int = 0) -> list[dict[str, object]]:
    """Return four clients with digits of their own, eight of each of five classes; ``shift``: exchange the classes."""
    digits = load_dataset("digits").train
    nodes: list[dict[str, object]] = []
    for i in range(4):
        classes = (torch.arange(5) + 5 * i + shift) % 10
        chosen = torch.cat([(digits.y == label).nonzero().flatten()[8 * i : 8 * i + 8] for label in classes])
        x, y = digits.x[chosen, 0].numpy() / 16.0, digits.y[chosen].numpy()
        np.savez(root / f"{i}.npz", x=x.astype(np.float32), y=y)
        nodes.append({"name": f"hospital-{i}", "data-path": str(root / f"{i}.npz")})
    return nodes


def recorded(values: Values, root: Path, app: Answer = client_app, shift: int = 0) -> tuple[RunConfig, list[Message]]:
    """Run with these settings in a new folder, and return what the server received, client by client in its order."""
    root.mkdir(exist_ok=True)
    config = RunConfig.from_flower(SMALL | {"output-dir": str(root / "run")} | values)
    clients = 4 if config.proxy == "holdout" else 8  # of which two sums can be made
    nodes = own_nodes(root, shift) if config.dataset == "own" else simulated_nodes(clients)
    grid = RecordingGrid(app, config.to_flower(), nodes)
    execute(config, grid)
    return config, sorted(grid.received, key=lambda message: message.metadata.src_node_id)


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
    refused = UNCOVERED if MODES[mode]["privacy"] != "plain" else ()
    refused += () if MODES[mode].get("share-label-counts", True) else NEED_COUNTS
    runs = [values for values in RUNS if values not in refused]
    for number, values in enumerate(runs):
        root = tmp_path / str(number)
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


# --- privacy=dp ------------------------------------------------------------------------------------

DP = next(name for name, values in MODES.items() if values["privacy"] == "dp")
PRIVATE: Values = {"privacy": "dp", "dp-noise": 0.05}


def other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every client have other data, as many of each: noise in place of images, and labels by chance."""
    real = client.open_data

    def opened(
        config: RunConfig, node: NodeConfig, task: ImageClassification | None
    ) -> tuple[ImageClassification, ClientData]:
        told, data = real(config, node, task)
        g = torch.Generator().manual_seed(len(node.client))

        def replaced(examples: Examples) -> Examples:
            y = torch.randint(told.num_classes, examples.y.shape, generator=g)
            return Examples(torch.randn(examples.x.shape, generator=g) * 3.0, y)

        return told, replace(data, train=replaced(data.train), test=replaced(data.test))

    monkeypatch.setattr(client, "open_data", opened)


def told_by(message: Message) -> Any:
    return (message.error.code, message.error.reason) if message.has_error() else message.content


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"share-label-counts": False, "initialisation": "universal", "local-loss": "balanced"},
        {"method": "fedavg-ft"},
        {"signature": "prototypes"},
        {"method": "scaffold"},
        {"method": "ditto"},
        {"method": "fedrep"},
    ],
    ids=["disue", "classes only", "fedavg-ft", "prototypes", "scaffold", "ditto", "fedrep"],
)
def test_whatever_the_data_are_only_releases_differ(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is released held fixed, all that the server receives is the same, byte for byte."""
    lengths: list[float] = []

    def fixed(vector: torch.Tensor, bound: float, noise: float, draw: Draw) -> torch.Tensor:
        lengths.append(float(vector.double().norm()) / bound)
        return bound * torch.linspace(-0.3, 1.0, vector.numel(), dtype=torch.float64)

    monkeypatch.setattr(noisy, "gaussian_mechanism", fixed)
    _, received = recorded(PRIVATE | values, tmp_path / "a")
    before = list(lengths)
    other_data(monkeypatch)
    _, others = recorded(PRIVATE | values, tmp_path / "b")
    assert before != lengths[len(before) :]
    assert len(received) == len(others)
    for one, other in zip(received, others, strict=True):
        assert told_by(one) == told_by(other)
    for root in ("a", "b"):  # what is counted is what was released
        counted = json.loads((tmp_path / root / "run" / LEDGER).read_text())
        assert sum(counted.values()) == len(before) == len(lengths) / 2


def test_of_data_of_their_own_clients_tell_only_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = next(values for values in RUNS if values.get("dataset") == "own")
    monkeypatch.setattr(
        noisy,
        "gaussian_mechanism",
        lambda vector, bound, noise, draw: bound * torch.ones(vector.numel(), dtype=torch.float64),
    )
    told = []
    for number, shift in enumerate((0, 5)):
        _, received = recorded(PRIVATE | own, tmp_path / str(number), shift=shift)
        told.append([told_by(message) for message in received])
    assert told[0] == told[1]


def test_the_page_tells_apart_what_is_released_and_what_is_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two federations with other data: what the page calls public is the same, what it calls released is not."""
    _, received = recorded(PRIVATE, tmp_path / "a")
    other_data(monkeypatch)
    _, others = recorded(PRIVATE, tmp_path / "b")
    differs: dict[Field, bool] = {}
    for one, other in zip(received, others, strict=True):
        for kind, record, key in fields_of(one):
            field = (kind, record, "*" if record == "arrays" else key)
            differs[field] = differs.get(field, False) or one.content[record][key] != other.content[record][key]
    said = {line.field: line.what[DP].startswith("released") for line in LINES if line.field in differs}
    assert differs == said
    assert all(line.what[DP].startswith(("released", "public", NOT_SENT)) for line in LINES)


def test_a_failure_says_nothing_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise DataError("patient-17.png cannot be read")

    monkeypatch.setattr(client, "train", broken)
    for number, mode in enumerate(MODES):
        root = tmp_path / str(number)
        with pytest.raises(FederationError, match=r"^min-success-fraction") as caught:
            recorded(MODES[mode], root)
        assert ("patient-17" in str(caught.value)) == (mode != DP)


def test_with_dp_a_client_compares_nothing_for_whoever_asks() -> None:
    reply = answered({"privacy": "dp"}, CompareRequest(STATE, STATE, 1))
    assert "privacy=dp: a client does not compare models" in reply.error.reason


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("privacy", "dp", "privacy=dp: a client does not tell how its features vary"),
        ("privacy", "secure", "privacy=secure: a client tells of its features in sums only"),
        (
            "share-label-counts",
            False,
            "share-label-counts=false: a client does not tell how the features of a class vary",
        ),
    ],
)
def test_who_may_not_tell_of_its_features_tells_nobody(key: str, value: Any, reason: str) -> None:
    assert reason in answered({key: value}, FeaturesRequest(STATE, 1)).error.reason
    assert answered({}, FeaturesRequest(STATE, 1)).has_content()


@pytest.mark.parametrize(
    ("key", "value"), [("privacy", "dp"), ("privacy", "secure"), ("share-label-counts", False)], ids=str
)
def test_who_may_not_tell_of_its_early_features_tells_nobody(key: str, value: Any) -> None:
    told = answered({key: value}, EarlyRequest(8, False, 1))
    assert told.error.reason.endswith(": a client does not tell of its early features")
    assert answered({}, EarlyRequest(8, False, 1)).has_content()


STATE = get_state(build_model("mlp", (1, 8, 8), 10))


def answered(values: Values, request: CompareRequest | EarlyRequest | FeaturesRequest) -> Message:
    """Return what a client of a run with such settings answers."""
    config = RunConfig.from_flower({"model": "mlp"} | values)
    grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(2))
    (reply,) = grid.send_and_receive([request.to_message(grid.get_node_ids()[0])])
    return reply
