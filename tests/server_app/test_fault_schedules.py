"""Whatever clients do, a run ends: with the right models, or with a clear error and a checkpoint to go on from.

``DISUE_FAULT_SCHEDULES=1000`` runs so many schedules; a failure names the number of its schedule.
"""

import json
import math
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from common import FAST
from fault_schedules import Attempt, FaultyGrid, Killed, Schedule

from disue.errors import DisueError, TooFewUpdates
from disue.files import read_tensors
from disue.models import build_model, get_state
from server_app.callbacks.checkpoint import Checkpoints
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import execute
from strategies.rounds import registry
from strategies.rounds import transport as exchange

SCHEDULES = int(os.environ.get("DISUE_FAULT_SCHEDULES", "30"))
LONGEST = 60
"""Seconds until a schedule counts as hanging; it takes less than one."""
SMALL: dict[str, Any] = FAST | {
    "distill-steps": 2,
    "num-groups": 1,
    "train-examples": 20,
    "test-examples": 20,
    "global-test-size": 20,
    "proxy-size": 20,
    "round-timeout": 0.01,
    "join-timeout": 0.05,
}


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def hangs(number: int, frame: object) -> None:
        raise AssertionError(f"it hangs: not over after {LONGEST} s")

    monkeypatch.setattr(registry, "JOIN_POLL_SECONDS", 0.001)
    monkeypatch.setattr(exchange, "POLL_SECONDS", 0.001)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_a_schedule_ends_well_or_clearly_and_can_go_on(number: int, tmp_path: Path) -> None:
    schedule, directory = Schedule(number), tmp_path / "run"
    config = RunConfig.from_flower(SMALL | schedule.values | {"output-dir": str(directory)})
    grid = FaultyGrid(config, schedule)
    error: BaseException | None = None
    try:
        execute(config, grid, schedule.after_round(directory))
    except (DisueError, Killed) as raised:
        error = raised
    if not (directory / "config.toml").exists():
        assert re.match("(min-clients|num-clusters): ", str(error))  # too few were there at the start
        return
    summary = json.loads((directory / "summary.json").read_text())
    ended = "stopped" if schedule.end == "stopped" and schedule.end_round < schedule.rounds else "completed"
    attempts = grid.attempts
    if error is None:
        assert summary["status"] == ended
        check_enough(config, attempts)
    else:
        assert summary["status"] == "failed"
        assert summary["error"]
        if not isinstance(error, Killed):
            failed = check_too_few(config, schedule, error, attempts)
            attempts = [attempt for attempt in attempts if attempt.server_round < failed]
    rows = rows_of(directory)
    check_rows(rows, attempts)
    if summary["status"] != "completed":
        saved = Checkpoints(directory).load()
        assert (saved.round if saved else 0) == len(rows) - isinstance(error, Killed)
        attempts = [attempt for attempt in attempts if saved and attempt.server_round <= saved.round]
        again = resumed_config({"resume-from": str(directory)})
        healthy = FaultyGrid(again, schedule, faults=False)
        assert execute(again, healthy)["status"] == "completed"
        attempts += healthy.attempts
        assert all(len(attempt.updates) == attempt.asked for attempt in healthy.attempts)
        rows = rows_of(directory)
        check_rows(rows, attempts)
    assert [row["round"] for row in rows] == list(range(1, schedule.rounds + 1))
    check_models(config, directory, attempts)


def test_without_faults_all_that_clients_say_counts(tmp_path: Path, messages: list[str]) -> None:
    values = SMALL | {"method": "disue", "num-clusters": 2, "output-dir": str(tmp_path / "run")}
    config = RunConfig.from_flower(values)
    execute(config, FaultyGrid(config, Schedule(0), faults=False))
    assert not [line for line in messages if re.search("told nothing|rejected|failed|too little is known", line)]
    assert not [row for row in rows_of(tmp_path / "run") if row["clients_failed"] or row["clients_rejected"]]


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def needed(config: RunConfig, asked: int) -> int:
    return max(1, math.ceil(config.min_success_fraction * asked - 1e-9))


def check_enough(config: RunConfig, attempts: list[Attempt]) -> None:
    """Check that no round counts in which too few of those that were asked sent a good update."""
    for attempt in used(attempts).values():
        assert len(attempt.updates) >= needed(config, attempt.asked)


def check_too_few(config: RunConfig, schedule: Schedule, error: BaseException, attempts: list[Attempt]) -> int:
    """Check that the run ended because there were too few twice, and return the round.

    Who was left out before counts, too; at most all did.
    """
    assert isinstance(error, TooFewUpdates)
    told = re.match(
        r"min-success-fraction: \d of \d clients .* in round (\d) and .*, also when it was repeated; the", str(error)
    )
    assert told
    assert "\n" not in str(error)
    failed = int(told[1])
    for attempt in (attempt for attempt in attempts if attempt.server_round >= failed):
        assert len(attempt.updates) < needed(config, schedule.clients)
    return failed


def used(attempts: list[Attempt]) -> dict[int, Attempt]:
    """Return the attempt of every round whose updates make its models: the last."""
    return {attempt.server_round: attempt for attempt in attempts}


def check_rows(rows: list[dict[str, Any]], attempts: list[Attempt]) -> None:
    """Check that rows are complete, and that they count what happened."""
    assert [row["round"] for row in rows] == list(used(attempts))
    for row in rows:
        of_round = [attempt for attempt in attempts if attempt.server_round == row["round"]]
        assert row["clients_ok"] == len(of_round[-1].updates)
        assert len(of_round) - 1 <= row["repeats"] <= 1  # nobody may have been asked in the first attempt
        assert row["clients_rejected"] == sum(attempt.rejected for attempt in of_round)
        lost = sum(attempt.asked - len(attempt.updates) - attempt.rejected for attempt in of_round)
        assert row["clients_failed"] >= lost


def check_models(config: RunConfig, directory: Path, attempts: list[Attempt]) -> None:
    """Check that models are finite; and, where they are weighted means, that they are those of the good updates."""
    paths = [directory / "universal.safetensors", *directory.glob("experts/*")]
    states = [read_tensors(path)[0] for path in paths]  # which raises if one is not finite
    if config.method == "fedavg":
        moved = sum(
            sum(examples * amount for examples, amount in attempt.updates.values())
            / sum(examples for examples, _ in attempt.updates.values())
            for attempt in used(attempts).values()
        )
        start = get_state(build_model("mlp", (1, 8, 8), 10, config.seed))
        for name, tensor in states[0].items():
            torch.testing.assert_close(tensor, start[name] + moved, rtol=0.0, atol=1e-5)
