"""What clients keep for a run: found again when it goes on, apart from other runs, and deleted when it is over."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run
from resuming import left_by
from tests_support import ChangingGrid

from client_app.app import app as client_app
from disue.errors import FederationError
from disue.wire.forget import FORGET
from disue_cli.engines.inline import FIRST_NODE_ID, simulated_nodes
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import execute
from server_app.stopping import ask_to_stop

CLIENTS, ROUNDS = 4, 4
SMALL: dict[str, Any] = {
    "model": "mlp",
    "num-server-rounds": ROUNDS,
    "local-epochs": 1,
    "momentum": 0.0,
    "fraction-train": 0.75,  # what is kept is not always of the round before
    "num-groups": 2,
    "train-examples": 30,
    "global-test-size": 50,
    "report": False,
}
METHODS = ("scaffold", "ditto", "fedrep")
Row = dict[str, Any]


class Killed(BaseException):
    """The process of the server was killed."""


class Deployment:
    """Nodes with a ``state-path``, whose processes are new for every part of a run.

    Parameters
    ----------
    place : Path or None
        The ``state-path`` of all of them.
    method : str
    per_node : int
    """

    def __init__(self, place: Path | None, method: str = METHODS[0], per_node: int = 1) -> None:
        self.place = place
        self.values = SMALL | {"method": method, "clients-per-node": per_node}
        self.per_node = per_node

    def grid(self, config: RunConfig, run_id: int = 1) -> ChangingGrid:
        more = {} if self.place is None else {"state-path": str(self.place)}
        nodes = [node | more for node in simulated_nodes(CLIENTS // self.per_node)]
        grid = ChangingGrid(client_app, config.to_flower(), nodes)
        grid.set_run(Run.create_empty(run_id))
        return grid

    def carry_out(
        self, directory: Path, on_round: Callable[[Row], None] | None = None, run_id: int = 1, **more: Any
    ) -> list[Row]:
        """Begin a run, or go on with it; return its rows."""
        if (directory / "config.toml").exists():
            config = resumed_config({"resume-from": str(directory)})
        else:
            config = RunConfig.from_flower(self.values | {"output-dir": str(directory)} | more)
        execute(config, self.grid(config, run_id), on_round)
        return list(left_by(directory)["metrics.jsonl"])

    def left(self) -> list[str]:
        """Return what is below the ``state-path``."""
        assert self.place is not None
        return sorted(path.relative_to(self.place).as_posix() for path in self.place.rglob("*"))


def in_round(number: int, act: Callable[[], object]) -> Callable[[Row], None]:
    """Return what does something when a round is recorded, before it is saved."""
    return lambda row: act() if row["round"] == number else None


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_node", [1, 2])
def test_a_run_that_was_stopped_goes_on_with_it_and_leaves_nothing(tmp_path: Path, method: str, per_node: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    Deployment(None, method, per_node).carry_out(whole)
    nodes = Deployment(tmp_path / "state", method, per_node)
    for number in (1, 3):
        nodes.carry_out(stopped, in_round(number, lambda: ask_to_stop(stopped)))
        assert nodes.left()
    nodes.carry_out(stopped)
    assert left_by(stopped) == left_by(whole)
    assert nodes.left() == []


@pytest.mark.parametrize("method", ["scaffold", "fedrep"])
def test_without_a_state_path_it_is_forgotten_in_the_break_and_the_log_says_so(
    tmp_path: Path, method: str, messages: list[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    nodes = Deployment(None, method)
    nodes.carry_out(whole)
    nodes.carry_out(stopped, in_round(2, lambda: ask_to_stop(stopped)))
    said = "clients go on with what they kept in the rounds before only where their nodes have a state-path"
    assert not [line for line in messages if line.startswith(said)]
    nodes.carry_out(stopped)
    assert len([line for line in messages if line.startswith(said)]) == 1
    assert (stopped / "universal.safetensors").read_bytes() != (whole / "universal.safetensors").read_bytes()


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_run_that_was_killed_before_a_round_was_saved_repeats_it(tmp_path: Path, number: int) -> None:
    """Clients have trained and been evaluated by then, in the last round, too."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Deployment(None).carry_out(whole)
    nodes = Deployment(tmp_path / "state")
    with pytest.raises(Killed):
        nodes.carry_out(killed, in_round(number, kill))
    nodes.carry_out(killed)
    assert left_by(killed) == left_by(whole)
    assert nodes.left() == []


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_it(tmp_path: Path) -> None:
    """It repeats two rounds, of which clients have kept something."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Deployment(None).carry_out(whole, **{"fraction-train": 1.0})
    nodes = Deployment(tmp_path / "state")
    with pytest.raises(Killed):
        nodes.carry_out(killed, in_round(4, kill), **{"fraction-train": 1.0})
    max((killed / "checkpoint").glob("round-000003-*")).write_bytes(b"damaged")
    nodes.carry_out(killed)
    assert left_by(killed) == left_by(whole)


def test_two_runs_of_the_same_settings_do_not_mix(tmp_path: Path) -> None:
    """The second is begun and ends while the first is stopped, on the same nodes."""
    whole, first, second = tmp_path / "whole", tmp_path / "first", tmp_path / "second"
    Deployment(None).carry_out(whole)
    nodes = Deployment(tmp_path / "state")
    nodes.carry_out(first, in_round(2, lambda: ask_to_stop(first)), run_id=7)
    of_first = nodes.left()
    nodes.carry_out(second, run_id=8)
    assert nodes.left() == of_first
    nodes.carry_out(first, run_id=9)  # for Flower it is another run
    assert nodes.left() == []
    for directory in (first, second):
        assert (directory / "universal.safetensors").read_bytes() == (whole / "universal.safetensors").read_bytes()
        assert left_by(directory)["metrics.jsonl"] == left_by(whole)["metrics.jsonl"]


def test_who_does_not_delete_it_is_named(tmp_path: Path, messages: list[str]) -> None:
    """A client that has left before the end, and one that fails; the run is completed."""
    nodes = Deployment(tmp_path / "state")
    config = RunConfig.from_flower(nodes.values | {"fraction-train": 1.0, "output-dir": str(tmp_path / "run")})
    grid = nodes.grid(config, run_id=0xABC)
    answer = grid.send_and_receive

    def busy(asked: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in asked:
            told = message.metadata
            if (told.message_type, told.dst_node_id) == (FORGET, FIRST_NODE_ID + 1):
                yield Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
            else:
                yield from answer([message], timeout=timeout)

    grid.send_and_receive = busy  # type: ignore[method-assign]
    summary = execute(config, grid, in_round(2, lambda: grid.forget(FIRST_NODE_ID + 3)))
    assert summary["status"] == "completed"
    assert [line for line in messages if "has not deleted" in line] == [
        "client-1 has not deleted what it kept for run 0000000000000abc: busy",
        "client-3 has not deleted what it kept for run 0000000000000abc: it is away",
    ]
    assert len([name for name in nodes.left() if "/" not in name]) == 2


def test_a_node_whose_state_path_cannot_be_written_is_refused_at_the_start(tmp_path: Path, messages: list[str]) -> None:
    place = tmp_path / "state"
    place.write_text("a file")
    nodes = Deployment(place)
    config = RunConfig.from_flower(nodes.values | {"output-dir": str(tmp_path / "run"), "join-timeout": 0.3})
    line = (
        f"ConfigError: node config of 'client-0': state-path: got '{place}', where nothing can be written "
        "(File exists); use a folder that the node may read and write, or none"
    )
    with pytest.raises(FederationError, match="^min-clients: 0 clients answered and 2 are needed") as caught:
        execute(config, nodes.grid(config))
    assert str(caught.value).endswith(f"the first problem was: {line}")
    assert not (tmp_path / "run").exists()

    grid = nodes.grid(config)
    for node_id in (FIRST_NODE_ID, FIRST_NODE_ID + 2, FIRST_NODE_ID + 3):
        own = grid.forget(node_id)
        del own.node_config["state-path"]
        grid.bring_back(own)
    execute(config, grid)  # without that one
    assert [line for line in messages if "cannot take part: ConfigError: node config of 'client-1': state-path" in line]
    assert [row["clients_ok"] for row in left_by(tmp_path / "run")["metrics.jsonl"]] == [2, 2, 2, 2]


def test_a_disk_that_is_full_in_a_round_costs_that_client_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """It goes on with what it had kept before."""
    nodes, directory = Deployment(tmp_path / "state"), tmp_path / "run"
    real, full = os.replace, []

    def replace(source: Path, target: Path) -> None:
        if full and Path(target).is_relative_to(nodes.place or "") and full.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    rows = nodes.carry_out(directory, in_round(1, lambda: full.append(True)), **{"fraction-train": 1.0})
    assert [(row["clients_ok"], row["clients_failed"]) for row in rows] == [(4, 0), (3, 1), (4, 0), (4, 0)]
    (line,) = [line for line in messages if "state-path" in line]
    assert line.startswith("client-0 failed: DiskError: state-path: '")
    assert line.endswith("-000002.safetensors' cannot be written (No space left on device); make room there")
    assert nodes.left() == []
