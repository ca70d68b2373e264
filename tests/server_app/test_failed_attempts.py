"""An attempt of a round that fails changes nothing: the run is then as if it had never been made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from common import FAST
from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from resuming import SETTINGS, left_by

from client_app.app import app as client_app
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.checkpoint import Checkpoints, packed, unpacked
from server_app.config import RunConfig
from server_app.run import execute
from strategies.flower import FederatedStrategy
from strategies.rounds.state import state_of

CLIENTS = 6
SMALL: dict[str, Any] = FAST | {
    "num-server-rounds": 2,
    "distill-steps": 2,
    "num-groups": 2,
    "num-clusters": 2,
    "train-examples": 20,
    "test-examples": 10,
    "global-test-size": 20,
    "proxy-size": 20,
}
SUMS: dict[str, dict[str, Any]] = {
    "updates": {"signature": "update"},
    "generator": {"proxy": "generator", "generator-steps": 2, "signature": "last-layer", "initialisation": "expert"},
    "probation": {"probation-rounds": 2, "signature": "prototypes"},
}
COSTS = {"repeats", "clients_failed", "clients_rejected", "client_steps", "bytes_down", "bytes_up"}


class Failing(InlineGrid):
    """Clients fail at one kind of request in one attempt, and are well before and after it.

    ``but`` so many of them, in each such request.
    """

    def __init__(self, config: RunConfig, kind: str = "", attempt: int = 0, but: int = 0) -> None:
        super().__init__(client_app, config.to_flower(), simulated_nodes(CLIENTS))
        self.kind = kind
        self.attempt = attempt
        self.but = but
        self.attempts = 0
        self.failed = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        self.attempts += bool(messages) and messages[0].metadata.message_type == MessageType.TRAIN
        return super().send_and_receive(messages, timeout=timeout)

    def answer(self, message: Message) -> Message:
        last = message.metadata.dst_node_id - min(self.contexts) >= self.but
        if self.attempts == self.attempt and message.metadata.message_type == self.kind and last:
            self.failed += 1
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
        return super().answer(message)


def run_of(directory: Path, settings: dict[str, Any], *failing: Any) -> dict[str, Any]:
    config = RunConfig.from_flower(SMALL | settings | {"output-dir": str(directory)})
    grid = Failing(config, *failing)
    execute(config, grid)
    assert bool(grid.failed) == bool(failing)
    left = left_by(directory)
    rows = [*left["metrics.jsonl"], left["summary.json"]]
    assert sum(row["repeats"] for row in rows) == 2 * bool(failing)  # once, and in the summary
    left["metrics.jsonl"], left["summary.json"] = [
        [{key: value for key, value in row.items() if key not in COSTS} for row in some]
        for some in (rows[:-1], rows[-1:])
    ]
    return left


def differences(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.mark.parametrize("name", ["fedavg", "ifca", "disue", "learned start", "generator"])
def test_clients_that_fail_to_train(tmp_path: Path, name: str) -> None:
    """Two of them send an update, which is not used: of the round's label counts and losses nothing is left either."""
    settings = SETTINGS[name]
    failed = run_of(tmp_path / "failed", settings, MessageType.TRAIN, 2, 2)
    assert differences(failed, run_of(tmp_path / "well", settings)) == set()


@pytest.mark.parametrize("name", SUMS)
def test_clients_that_fail_after_they_were_grouped(tmp_path: Path, name: str) -> None:
    """With sums only, clusters come before the vectors, and are made of what is then not used."""
    settings = SUMS[name] | {"privacy": "secure"}
    failed = run_of(tmp_path / "failed", settings, "query.mask", 2)
    assert differences(failed, run_of(tmp_path / "well", settings)) == set()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_round_that_breaks_at_its_end_leaves_the_state_of_the_round_before(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models, clusters, signatures, generator: all had moved; the checkpoint of the round before tells how it was."""
    strategies: list[FederatedStrategy] = []
    evaluate = FederatedStrategy.aggregate_evaluate

    def breaks(strategy: FederatedStrategy, server_round: int, replies: Iterable[Message]) -> Any:
        evaluate(strategy, server_round, replies)
        if server_round == 2:
            strategies.append(strategy)
            assert strategy_state(strategy) != saved()
            raise RuntimeError("broken")

    def saved() -> bytes:
        found = Checkpoints(tmp_path / "run").load()
        assert found is not None
        assert found.round == 1
        return packed(found.parts["strategy"])

    monkeypatch.setattr(FederatedStrategy, "aggregate_evaluate", breaks)
    config = RunConfig.from_flower(SMALL | settings | {"output-dir": str(tmp_path / "run")})
    with pytest.raises(RuntimeError, match="broken"):
        execute(config, Failing(config))
    assert strategy_state(strategies[0]) == saved()


def strategy_state(strategy: FederatedStrategy) -> bytes:
    return packed(unpacked(packed(state_of(strategy))))
