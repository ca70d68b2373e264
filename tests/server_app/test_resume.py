"""Runs that were interrupted go on as if they had not been."""

import hashlib
import json
import os
import random
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import FAST
from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from pydantic import Field
from resuming import SETTINGS, left_by
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from client_app.app import app as client_app
from disue.config import Changeable, Settings
from disue.errors import ConfigError, DataError, FederationError, TooFewUpdates
from disue_cli.engines import inline
from disue_cli.engines.inline import InlineGrid, run_inline, simulated_nodes
from server_app.callbacks.checkpoint import packed, unpacked
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import execute
from server_app.run_lock import exclusive, is_held
from strategies.aggregation.average import weighted_average
from strategies.aggregation.robust import AGGREGATORS

CLIENTS = 4
SMALL = FAST | {"num-server-rounds": 3, "distill-steps": 3, "fraction-train": 0.75, "num-groups": 2}
SMALL |= {
    "num-clusters": 2,
    "fraction-evaluate": 0.5,
    "train-examples": 30,
    "test-examples": 20,
    "global-test-size": 50,
    "proxy-size": 30,
}
WRITES_A_ROUND = 5
"""To the disk: metrics, membership, and the checkpoint, its name and its directory."""


def config_for(directory: Path, **values: Any) -> RunConfig:
    return RunConfig.from_flower(SMALL | values | {"output-dir": str(directory)})


def go_on(directory: Path, **values: Any) -> None:
    run_inline(resumed_config({"resume-from": str(directory), **values}), CLIENTS)


@pytest.fixture
def before_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Call something before every write to the disk: a process that was killed then would leave what is there."""

    def watch(look: Callable[[], object]) -> None:
        def watched(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: Any) -> object:
                look()
                return real(*arguments)

            return call

        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, watched(getattr(os, name)))

    return watch


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_goes_on_as_if_it_had_not_been_interrupted(
    tmp_path: Path, before_writes: Callable[[Callable[[], object]], None], name: str
) -> None:
    """Equal checkpoints, too: equal state, in which the same things are the same objects."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    writes_left = random.Random(name).randrange(WRITES_A_ROUND)

    def look() -> None:
        nonlocal writes_left
        if any(whole.glob("checkpoint/round-000001-*.safetensors")):
            if writes_left == 0:
                shutil.copytree(whole, killed)
            writes_left -= 1

    before_writes(look)
    run_inline(config_for(whole, **SETTINGS[name]), CLIENTS)
    assert {path.name[:13] for path in killed.glob("checkpoint/round-*.safetensors")} == {"round-000001-"}
    go_on(killed)
    assert left_by(killed) == left_by(whole)


def test_every_moment_can_be_the_last(tmp_path: Path, before_writes: Callable[[Callable[[], object]], None]) -> None:
    """Also before there is a config or a checkpoint, while models are written, and while a run that goes on begins."""
    whole, settings = tmp_path / "whole", {"method": "fedavg", "num-server-rounds": 2}
    writes, wanted, running = 0, range(0, 10**9, 6), whole
    copies: list[Path] = []

    def look() -> None:
        nonlocal writes
        if writes in wanted:
            copies.append(tmp_path / f"killed-{len(copies)}")
            shutil.copytree(running, copies[-1])
        writes += 1

    def begin_again(directory: Path) -> None:
        if (directory / "MODEL_CARD.md").exists():  # its last write, after which there is nothing to do
            return
        started = (directory / "config.toml").exists()
        config = resumed_config({"resume-from": str(directory)}) if started else config_for(directory, **settings)
        run_inline(config, 2)

    before_writes(look)
    run_inline(config_for(whole, **settings), 2)
    assert writes > 30
    first = list(copies)
    for running in first:
        # Of those that go on one is killed again, at its beginning, in the round or at its end.
        writes, wanted = 0, range(3 * first.index(running), 3 * first.index(running) + 1)
        begin_again(running)
        assert left_by(running) == left_by(whole)
    wanted = range(0)
    assert len(copies) > len(first) + 3
    for running in copies[len(first) :]:
        begin_again(running)
        assert left_by(running) == left_by(whole)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds, ``whole``, and one that was killed in its third, ``run``."""
    place = tmp_path_factory.mktemp("runs")
    run_inline(config_for(place / "whole"), CLIENTS)
    return interrupted(place / "run").parent


@pytest.fixture
def run_of_two(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "run", tmp_path / "run"))


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "whole", tmp_path / "whole"))


def interrupted(directory: Path, after: int = 2, clients: int = CLIENTS, **values: Any) -> Path:
    """Leave a run of three rounds as a process would that was killed as it reported a round after ``after``."""

    class Killed(BaseException):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["round"] > after:
            raise Killed

    with pytest.raises(Killed):
        run_inline(config_for(directory, **values), clients, stop)
    return directory


def everything_in(directory: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_new_node_ids_are_the_same_clients(run_of_two: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a simulation by Flower: nobody is asked again to describe its data, and bytes are equal, too."""
    monkeypatch.setattr(inline, "FIRST_NODE_ID", 77)
    go_on(run_of_two)
    resumed, expected = left_by(run_of_two), left_by(whole)
    for name in ("metrics.jsonl", "clients.csv", "membership.csv", "universal.safetensors", "summary.json"):
        assert resumed[name] == expected[name]


def test_models_may_be_kept_elsewhere(run_of_two: Path, whole: Path) -> None:
    go_on(run_of_two, **{"reply-memory": 0})
    resumed, expected = left_by(run_of_two), left_by(whole)
    for name in ("metrics.jsonl", "clients.csv", "membership.csv", "universal.safetensors", "summary.json"):
        assert resumed[name] == expected[name]


def test_a_damaged_checkpoint_is_passed_over(run_of_two: Path, whole: Path, messages: list[str]) -> None:
    _, newest = sorted((run_of_two / "checkpoint").glob("round-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    go_on(run_of_two)
    assert left_by(run_of_two) == left_by(whole)
    assert [line for line in messages if "damaged" in line] == [
        f"checkpoint {newest.name} is damaged; going on from the one before it, round 1"
    ]


def test_a_completed_run_can_be_extended(tmp_path: Path) -> None:
    """Its models are those of the longer run where what clients start from does not depend on evaluations."""
    settings = {"initialisation": "blend"}
    run_inline(config_for(tmp_path / "long", **settings, **{"num-server-rounds": 4}), CLIENTS)
    run_inline(config_for(tmp_path / "run", **settings), CLIENTS)
    (tmp_path / "run" / "experts" / "expert-9.safetensors").write_bytes(b"of a cluster that is no more")
    go_on(tmp_path / "run", **{"num-server-rounds": 4})
    extended, long = left_by(tmp_path / "run"), left_by(tmp_path / "long")
    same = {name for name in long if name not in ("metrics.jsonl", "summary.json") and "round-000003" not in name}
    assert {name: extended.get(name) for name in same} == {name: long[name] for name in same}
    assert "experts/expert-9.safetensors" not in extended
    rows = zip(extended["metrics.jsonl"], long["metrics.jsonl"], strict=True)
    assert [row["round"] for row, other in rows if row != other] == [3]  # it evaluated and fine-tuned all clients


def test_what_does_not_change_results_may_be_set_anew_and_is_kept(run_of_two: Path) -> None:
    go_on(run_of_two, **{"round-timeout": 77.0, "num-server-rounds": 4})
    settings = tomllib.loads((run_of_two / "config.toml").read_text())
    run = settings["run"]
    assert (run["round-timeout"], run["num-server-rounds"], run["resume-from"]) == (77.0, 4, "")
    assert run["output-dir"] == str(run_of_two)


class ToldSettings(Settings):
    """Aggregator `told-mean`."""

    told_aloud: Changeable[bool] = Field(False, description="say so")
    told_twice: bool = Field(False, description="say it again")


def test_a_part_says_which_of_its_keys_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    with AGGREGATORS.scope():
        AGGREGATORS.register("told-mean", ToldSettings)(lambda updates, settings: weighted_average(updates))
        run_inline(config_for(tmp_path, aggregator="told-mean", **{"num-server-rounds": 1}), CLIENTS)
        with pytest.raises(ConfigError, match=r"^told-twice: got True; the run .* goes on with told-twice=false only"):
            go_on(tmp_path, **{"num-server-rounds": 2, "told-aloud": True, "told-twice": True})
        go_on(tmp_path, **{"num-server-rounds": 2, "told-aloud": True})
        run = tomllib.loads((tmp_path / "config.toml").read_text())["run"]
    assert (run["told-aloud"], run["told-twice"]) == (True, False)


def test_a_run_that_was_moved_goes_on_where_it_is(run_of_two: Path, tmp_path: Path) -> None:
    moved = run_of_two.rename(tmp_path / "moved")
    go_on(moved)
    assert not run_of_two.exists()
    assert json.loads((moved / "summary.json").read_text())["status"] == "completed"


def break_config(directory: Path) -> None:
    (directory / "config.toml").write_text("[run\n")


def drop_key(directory: Path) -> None:
    text = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(text.replace("alpha =", "beta ="))


def break_checkpoints(directory: Path) -> None:
    for path in (directory / "checkpoint").glob("round-*"):
        path.write_bytes(b"x")


def drop_checkpoints(directory: Path) -> None:
    shutil.rmtree(directory / "checkpoint")


def drop_a_row(directory: Path) -> None:
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[1:]))


def break_membership(directory: Path) -> None:
    (directory / "membership.csv").write_text("round,client\n1,a\n")


@pytest.mark.parametrize(
    ("damage", "values", "kind", "words"),
    [
        (shutil.rmtree, {}, DataError, "there is no run in '.*' (config.toml is missing)"),
        (break_config, {}, DataError, "config.toml' is damaged"),
        (drop_key, {}, DataError, "config.toml': beta: no such run config key"),
        (break_checkpoints, {}, DataError, "all checkpoints are damaged"),
        (drop_checkpoints, {}, DataError, "the run has 3 rounds and no checkpoint"),
        (drop_a_row, {}, DataError, "metrics.jsonl' is damaged (rounds 1 to 2 are not all there)"),
        (break_membership, {}, DataError, "membership.csv' is damaged"),
        (None, {"method": "cfl"}, ConfigError, "^method: got 'cfl'; the run in '.*' goes on with method=.disue. only"),
        (None, {"alpha": 0.5, "seed": 1}, ConfigError, "^seed: got 1; the run .* goes on with seed=0 alpha=0.1 only"),
        (None, {"alpha": "x"}, ConfigError, "^alpha: got 'x'"),
        (None, {"output-dir": "/elsewhere"}, ConfigError, "^output-dir: got '/elsewhere'; a run goes on in its own"),
        (None, {"num-server-rounds": 1}, ConfigError, "^num-server-rounds: got 1; .* has 2 of 3 .* use at least 3"),
        (None, {"num-server-rounds": 2}, ConfigError, "^num-server-rounds: got 2; .* has 2 of 3 .* use at least 3"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_one_line_and_nothing_changes(
    run_of_two: Path,
    damage: Callable[[Path], object] | None,
    values: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    if damage:
        damage(run_of_two)
    before = everything_in(run_of_two)
    with pytest.raises(kind, match=words.replace("(", r"\(").replace(")", r"\)")) as caught:
        go_on(run_of_two, **values)
    assert "\n" not in str(caught.value)
    assert everything_in(run_of_two) == before


def test_a_completed_run_has_nothing_to_go_on_with(whole: Path) -> None:
    before = everything_in(whole)
    with pytest.raises(ConfigError, match="is completed; num-server-rounds above 3 would extend it"):
        go_on(whole)
    assert everything_in(whole) == before


@pytest.mark.parametrize("clients", [3, 6])
def test_another_number_of_clients_is_refused(run_of_two: Path, clients: int) -> None:
    """By the server, too, where nobody told how many there will be."""
    config = resumed_config({"resume-from": str(run_of_two), "join-timeout": 0.5})
    before = everything_in(run_of_two)
    words = f"0 clients answered and 2 are needed; .* num-partitions: got {clients}; the run has 4"
    with pytest.raises(FederationError, match=words):
        run_inline(config, clients)
    assert everything_in(run_of_two) == before


def test_only_one_process_writes_in_a_directory(run_of_two: Path) -> None:
    assert is_held(run_of_two) is False
    with exclusive(run_of_two):
        assert is_held(run_of_two) is True
        before = everything_in(run_of_two)
        with pytest.raises(ConfigError, match="is in use, another process writes there"):
            go_on(run_of_two)
        with pytest.raises(ConfigError, match="is in use"), exclusive(run_of_two):
            pass
        assert everything_in(run_of_two) == before
    assert is_held(run_of_two) is False
    go_on(run_of_two)


def test_with_flower_the_config_is_repeated(run_of_two: Path) -> None:
    """The clients have it from Flower, so the server cannot take another one from the directory."""
    config = config_for(run_of_two, **{"resume-from": str(run_of_two), "output-dir": ""})
    grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(CLIENTS))
    with pytest.raises(ConfigError, match="goes on with alpha=0.1 only"):
        execute(config.model_copy(update={"alpha": 0.2}), grid)
    assert execute(config, grid)["status"] == "completed"


def test_clients_that_are_missing_are_left_out_and_come_back(run_of_two: Path, messages: list[str]) -> None:
    config = resumed_config({"resume-from": str(run_of_two), "join-timeout": 0.5, "num-server-rounds": 6})
    nodes = simulated_nodes(CLIENTS)
    grid = InlineGrid(client_app, config.to_flower(), nodes)
    late = grid.contexts.pop(inline.FIRST_NODE_ID + 2)

    def bring_back(row: dict[str, Any]) -> None:
        if row["round"] == 4:
            grid.contexts[late.node_id] = late

    summary = execute(config, grid, bring_back)
    rows = [json.loads(line) for line in (run_of_two / "metrics.jsonl").read_text().splitlines()]
    assert [row["clients_failed"] for row in rows] == [0, 0, 1, 1, 0, 0]
    assert summary["clients"] == CLIENTS
    assert messages.count("client client-2 is not there; going on without it") == 1
    assert [line for line in messages if line.startswith("client client-2 is back, in cluster")]


def test_too_few_clients_leave_the_run_as_it_was(run_of_two: Path) -> None:
    config = resumed_config({"resume-from": str(run_of_two), "join-timeout": 0.5})
    before = everything_in(run_of_two)
    with pytest.raises(FederationError, match="min-clients: 1 clients joined"):
        execute(config, InlineGrid(client_app, config.to_flower(), simulated_nodes(CLIENTS)[:1]))
    assert everything_in(run_of_two) == before


def test_other_source_code_is_a_warning(run_of_two: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    monkeypatch.setattr("server_app.resume.source_hash", lambda: "another")
    go_on(run_of_two)
    assert len([line for line in messages if "begun by other source code" in line]) == 1


def test_pictures_of_rounds_that_are_run_again_are_gone(run_of_two: Path) -> None:
    generated = run_of_two / "generated"
    generated.mkdir()
    for number in (1, 2, 3, 10000):
        (generated / f"round-{number:04}.png").write_bytes(b"")
    go_on(run_of_two)
    assert {path.name for path in generated.iterdir()} == {"round-0001.png", "round-0002.png"}


def test_tensorboard_shows_every_round_once(tmp_path: Path) -> None:
    directory = interrupted(tmp_path / "run", tensorboard=True)
    go_on(directory)
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    points = events.Scalars("accuracy/universal_accuracy")
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx([row["universal_accuracy"] for row in rows])


class Failing(InlineGrid):
    """Clients fail when they are asked to train in a round, so many times in all."""

    def __init__(self, config: RunConfig, in_round: int, times: int) -> None:
        super().__init__(client_app, config.to_flower(), simulated_nodes(CLIENTS))
        self.in_round = in_round
        self.times = times

    def answer(self, message: Message) -> Message:
        asked = message.metadata
        if (asked.message_type, asked.group_id) == (MessageType.TRAIN, str(self.in_round)) and self.times:
            self.times -= 1
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
        return super().answer(message)


def test_a_run_that_too_many_clients_stopped_goes_on_from_its_checkpoint(runs: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with pytest.raises(TooFewUpdates, match="0 of 3 clients sent .* in round 3 and 2 are needed, also when it was rep"):
        execute(config, Failing(config, 3, 99))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("failed", 2)
    go_on(tmp_path / "run")
    assert left_by(tmp_path / "run") == left_by(runs / "whole")


def test_a_round_that_was_repeated_says_so_and_counts_all_failures(tmp_path: Path) -> None:
    """The next rounds are as they would have been with the clients that were asked at last."""
    untaught = {"distill-steps": 0}  # clients are asked to train and nothing else
    config = config_for(tmp_path / "run", **untaught)
    summary = execute(config, Failing(config, 2, 3))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["repeats"] for row in rows] == [0, 1, 0]
    assert [row["clients_ok"] for row in rows] == [3, 3, 3]
    assert [row["clients_failed"] for row in rows] == [0, 3, 0]
    assert (summary["repeats"], summary["clients_failed"], summary["status"]) == (1, 3, "completed")
    assert rows[1]["bytes_down"] == pytest.approx(2 * rows[2]["bytes_down"], rel=0.01)
    interrupted_there = tmp_path / "again"
    other = config_for(interrupted_there, **untaught)
    with pytest.raises(TooFewUpdates):
        execute(other, Failing(other, 2, 99))
    resumed = resumed_config({"resume-from": str(interrupted_there)})
    execute(resumed, Failing(resumed, 2, 3))
    assert left_by(interrupted_there) == left_by(tmp_path / "run")


@pytest.mark.parametrize("name", ["experts", "checkpoint", "generated", "tensorboard"])
def test_a_run_whose_folders_lead_elsewhere_does_not_go_on(run_of_two: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run_of_two / name).exists():
        shutil.copytree(run_of_two / name, elsewhere)
        shutil.rmtree(run_of_two / name)
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "mine.safetensors").write_text("precious")
    (run_of_two / name).symlink_to(elsewhere)
    before = everything_in(elsewhere)
    with pytest.raises(DataError, match=f"{name}' leads out of the run directory"):
        go_on(run_of_two)
    assert everything_in(elsewhere) == before


def test_a_checkpoint_that_was_changed_with_its_hash_is_one_line(run_of_two: Path) -> None:
    path = max((run_of_two / "checkpoint").glob("round-*"))
    value = unpacked(path.read_bytes())
    state = value["parts"]["strategy"]["state"]
    value["parts"]["strategy"]["state"] = replace(state, plain={"mlp": {"another": torch.ones(3)}})
    content = packed(value)
    path.unlink()
    path.with_name(f"{path.name[:12]}-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="cannot be gone on from .* was changed"):
        go_on(run_of_two)
