"""A callback of one's own: each hook is called at its moment, and `end` however the run ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from common import FAST
from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode

from client_app.app import app as client_app
from disue.errors import DataError, TooFewUpdates
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.base import Callback, RunContext, RunEnd
from server_app.callbacks.results import Results
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.rows import Row
from server_app.run import execute
from server_app.stopping import ask_to_stop

CLIENTS = 3


class Watcher(Callback):
    """Notes what it is told, and what is in the run directory then."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def begin(self, run: RunContext) -> None:
        there = {path.name for path in run.directory.iterdir() if path.is_file()}
        self.seen.append(("begin", len(run.rows.done), {"config.toml", "metrics.jsonl"} <= there))

    def after_round(self, run: RunContext, row: Row) -> None:
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
        self.seen.append(("round", row["round"], json.loads(lines[-1]) == row, saved(run.directory)))
        assert run.strategy.stats.server_round == row["round"] == len(lines)

    def end(self, run: RunContext, end: RunEnd) -> None:
        assert json.loads((run.directory / "summary.json").read_text()) == end.summary
        models = (run.directory / "universal.safetensors").exists()
        assert models == (end.state is not None)
        assert not (run.directory / "MODEL_CARD.md").exists()
        self.seen.append((end.summary["status"], end.summary["rounds"], models, type(end.error)))


def saved(directory: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in directory.glob("checkpoint/round-*"))


def config_for(directory: Path, **values: Any) -> RunConfig:
    small = FAST | {"method": "fedavg", "train-examples": 20, "test-examples": 10, "global-test-size": 20}
    return RunConfig.from_flower(small | {"output-dir": str(directory)} | values)


def carry_out(config: RunConfig, *callbacks: Callback, grid: type[InlineGrid] = InlineGrid) -> Row:
    return execute(config, grid(client_app, config.to_flower(), simulated_nodes(CLIENTS)), callbacks=callbacks)


def test_each_hook_is_called_at_its_moment(tmp_path: Path) -> None:
    """The row of a round is recorded before, and its checkpoint is saved after; the pages come last."""
    watcher = Watcher()
    carry_out(config_for(tmp_path / "run"), watcher)
    assert watcher.seen == [
        ("begin", 0, True),
        ("round", 1, True, []),
        ("round", 2, True, [1]),
        ("completed", 2, True, type(None)),
    ]
    assert (tmp_path / "run" / "MODEL_CARD.md").exists()


def test_a_run_that_goes_on_begins_with_the_rows_that_there_are(tmp_path: Path) -> None:
    class Stopping(Watcher):
        def after_round(self, run: RunContext, row: Row) -> None:
            super().after_round(run, row)
            ask_to_stop(run.directory)

    first, second = Stopping(), Watcher()
    assert carry_out(config_for(tmp_path / "run"), first)["status"] == "stopped"
    assert first.seen[1:] == [("round", 1, True, []), ("stopped", 1, True, type(None))]
    carry_out(resumed_config({"resume-from": str(tmp_path / "run")}), second)
    assert second.seen == [
        ("begin", 1, True),
        ("round", 2, True, [1]),
        ("completed", 2, True, type(None)),
    ]


class Busy(InlineGrid):
    """Nobody trains in the second round."""

    def answer(self, message: Message) -> Message:
        asked = message.metadata
        if asked.message_type == MessageType.TRAIN and asked.group_id == "2":
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
        return super().answer(message)


def test_a_callback_is_ended_when_the_run_fails(tmp_path: Path) -> None:
    """With the models of the last good round."""
    watcher = Watcher()
    with pytest.raises(TooFewUpdates):
        carry_out(config_for(tmp_path / "run"), watcher, grid=Busy)
    assert watcher.seen[1:] == [("round", 1, True, []), ("failed", 1, True, TooFewUpdates)]


def test_an_error_in_a_hook_ends_the_run_and_every_callback_that_has_begun(tmp_path: Path) -> None:
    class Broken(Callback):
        ended = False

        def after_round(self, run: RunContext, row: Row) -> None:
            raise LookupError("no such place")

        def end(self, run: RunContext, end: RunEnd) -> None:
            self.ended = True

    first, broken, last = Watcher(), Broken(), Watcher()
    with pytest.raises(LookupError, match="no such place"):
        carry_out(config_for(tmp_path / "run"), first, broken, last)
    assert (first.seen[-1], last.seen[-1]) == (("failed", 1, True, LookupError), ("failed", 1, True, LookupError))
    assert broken.ended
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["error"] == "no such place"
    assert saved(tmp_path / "run") == []  # the round is carried out again


def test_a_callback_that_cannot_begin_is_not_ended(tmp_path: Path) -> None:
    class Missing(Watcher):
        def begin(self, run: RunContext) -> None:
            raise DataError("it is not there")

    first, missing, last = Watcher(), Missing(), Watcher()
    with pytest.raises(DataError, match="it is not there"):
        carry_out(config_for(tmp_path / "run"), first, missing, last)
    assert [first.seen[-1], missing.seen, last.seen] == [("failed", 0, False, DataError), [], []]
    assert not (tmp_path / "run" / "progress.json").exists()


def test_results_that_cannot_be_written_fail_the_run_for_the_callbacks_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no summary claims models that are not there; of two errors the first is raised."""
    watcher = Watcher()

    def full(*arguments: object) -> None:
        raise DataError("no room")

    monkeypatch.setattr(Results, "end", full)
    with pytest.raises(DataError, match="no room"):
        carry_out(config_for(tmp_path / "run"), watcher)
    assert watcher.seen[-1] == ("failed", 2, False, DataError)
    assert not (tmp_path / "run" / "MODEL_CARD.md").exists()


def test_of_two_errors_the_first_is_raised_and_the_other_is_logged(tmp_path: Path, messages: list[str]) -> None:
    class Both(Callback):
        def after_round(self, run: RunContext, row: Row) -> None:
            raise LookupError("first")

        def end(self, run: RunContext, end: RunEnd) -> None:
            raise DataError("second")

    with pytest.raises(LookupError, match="first"):
        carry_out(config_for(tmp_path / "run"), Both())
    assert "not all could be written that the run has so far: second" in messages
