"""A node caps what a run with privacy=dp may learn of it, and refuses a run that asks for more."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from tests_support import RecordingGrid

from client_app.app import app as client_app
from client_app.release.budget import RECORD, Budget
from disue.errors import ConfigError
from disue.models import build_model, get_state
from disue.nodes import NodeConfig
from disue.privacy.dp import epsilon_of, planned_releases
from disue.wire import DescribeRequest, EvaluateRequest, HelloRequest, TrainRequest
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.callbacks.ledger import LEDGER
from server_app.callbacks.ledger import epsilon_of as accountant
from server_app.config import RunConfig
from server_app.run import execute
from strategies.rounds.packing import seated

SMALL = {"model": "mlp", "num-server-rounds": 3, "local-epochs": 1, "distill-steps": 1, "report": False}
DP = SMALL | {"privacy": "dp", "dp-noise": 2.0}

ASKED = HelloRequest(prototypes=True, description=True)


def node(**limits: Any) -> NodeConfig:
    return NodeConfig(partition_id=0, num_partitions=3, **limits)


def budget(node: NodeConfig, **values: Any) -> Budget:
    return Budget(RunConfig(privacy="dp", **values), node, Context(1, 1, {}, RecordDict(), {}))


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0, 4.0, 50.0])
def test_a_node_counts_no_less_than_the_accountant(noise: float, delta: float) -> None:
    """The accountant itself is held against the exact Gaussian in tests/server_app/test_privacy.py."""
    for releases in (1, 2, 3, 30, 1000, 10**6):
        told = accountant(releases, noise, delta)
        assert epsilon_of(releases, noise, delta) >= told * (1.0 - 1e-12)
        assert epsilon_of(releases, noise, delta) == pytest.approx(told, rel=1e-9)


def test_no_releases_are_nothing_and_hardly_any_noise_is_no_privacy() -> None:
    assert epsilon_of(0, 1.0, 1e-5) == 0.0
    assert epsilon_of(1, 1e-300, 1e-5) == float("inf")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": "fedavg"},
        {"method": "fedavg", "evaluate-every": 2},
        {"signature": "prototypes"},
        {"num-server-rounds": 1},
    ],
    ids=str,
)
def test_the_plan_is_what_a_run_without_faults_asks_for(run: Callable[..., Any], values: dict[str, Any]) -> None:
    keys = {key.replace("-", "_"): value for key, value in values.items()}
    result = run(clients=3, privacy="dp", dp_noise=3.0, **keys)
    counted = json.loads((result.directory / LEDGER).read_text())
    compared = result.config.method == "disue"
    described = compared and result.config.signature == "initial-prototypes"
    assert set(counted.values()) == {planned_releases(result.config, compared, described)}


@pytest.mark.parametrize(
    ("limits", "values", "words"),
    [
        (
            {"min_dp_noise": 1.5},
            {},
            "dp-noise: got 1; 'client-0' has min-dp-noise=1.5, use at least that",
        ),
        (
            {"max_delta": 1e-6},
            {},
            "dp-delta: got 1e-05; 'client-0' has max-delta=1e-06, use at most that",
        ),
        (
            {"max_epsilon": 900.0},
            {"dp_delta": 1e-3},
            "dp-delta: got 0.001; 'client-0' has max-delta=1e-05, use at most that",
        ),
    ],
    ids=str,
)
def test_less_noise_or_a_larger_delta_is_refused(limits: dict[str, float], values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}$"):
        budget(node(**limits), **values)


def test_what_is_just_allowed_is_not_refused() -> None:
    budget(node(min_dp_noise=1.0, max_delta=1e-5), dp_noise=1.0, dp_delta=1e-5)
    budget(node(max_epsilon=1e-9, max_delta=1e-3), dp_delta=1e-3)  # while nothing is released
    planned = planned_releases(RunConfig(privacy="dp"), True, True)
    budget(node(max_epsilon=epsilon_of(planned, 1.0, 1e-5))).check_plan(ASKED)


def test_a_run_that_announces_too_much_is_refused_with_what_is_allowed() -> None:
    planned = planned_releases(RunConfig(privacy="dp"), True, True)
    assert planned == 31  # a description; ten rounds of an update, a signature and an evaluation
    fits = epsilon_of(12, 1.0, 1e-5)
    words = (
        "max-epsilon: 31 releases with dp-noise=1, for which this run may ask, come to epsilon "
        f"{epsilon_of(31, 1.0, 1e-5):.6g} at delta 1e-05; 'client-0' has max-epsilon={fits:g}, which is "
    )
    with pytest.raises(ConfigError) as caught:
        budget(node(max_epsilon=fits)).check_plan(ASKED)
    assert str(caught.value) == f"{words}12 of them"
    with pytest.raises(ConfigError, match="which is 0 of them$"):
        budget(node(max_epsilon=1e-3)).check_plan(ASKED)


def asked(grid: InlineGrid, message: Message) -> str:
    """Return why a request was refused; empty: it was answered."""
    (reply,) = grid.send_and_receive([message])
    return str(reply.error.reason) if reply.has_error() else ""


def test_a_server_that_asks_for_more_than_it_announced_gets_no_more() -> None:
    """It announces one round, which is just allowed, and goes on asking; whatever it asks for counts."""
    config = RunConfig.from_flower(DP | {"num-server-rounds": 1})
    planned = planned_releases(config, True, True)  # description, signature, update, evaluation
    limit = {"max-epsilon": epsilon_of(planned, 2.0, 1e-5)}
    grid = InlineGrid(client_app, config.to_flower(), [simulated_nodes(3)[0] | limit])
    (client,) = grid.get_node_ids()
    state = get_state(build_model("mlp", (1, 8, 8), 10))

    def train(number: int) -> Message:
        return TrainRequest(state, number, signature=True).to_message(client)

    assert asked(grid, HelloRequest().to_message(client)) == ""
    assert asked(grid, train(1)) == ""
    assert asked(grid, EvaluateRequest(state, 1).to_message(client)) == ""
    assert grid.contexts[client].state[RECORD]["count"] == planned - 1
    for number in (1, 2):  # two releases, of which one is left: none is told
        reason = asked(grid, train(number))
        assert f"max-epsilon: {planned + 1} releases with dp-noise=2, for which it was asked, come to epsilon" in reason
        assert f"which is {planned} of them" in reason
    assert "max-epsilon" in asked(grid, EvaluateRequest(state, 2).to_message(client))
    assert "max-epsilon" in asked(grid, train(3))


def test_a_node_with_limits_takes_part_in_no_other_mode() -> None:
    dp, secure = [{"max-epsilon": 5.0}, {"max-delta": 0.1}, {"min-dp-noise": 0.1}], [{"max-sketch-size": 8}]
    for mode, wanted, some in (
        ("plain", "dp", dp),
        ("secure", "dp", dp),
        ("plain", "secure", secure),
        ("dp", "secure", secure),
    ):
        for limits in some:
            config = RunConfig.from_flower(SMALL | {"privacy": mode})
            grid = InlineGrid(client_app, config.to_flower(), [simulated_nodes(3)[0] | limits])
            reason = asked(grid, HelloRequest().to_message(grid.get_node_ids()[0]))
            assert f"privacy: got '{mode}'; 'client-0' takes part in runs with privacy={wanted} only" in reason


def test_a_node_limits_the_sketch_from_which_its_data_could_be_told() -> None:
    state = get_state(build_model("mlp", (1, 8, 8), 10))
    for size, words in ((8, ""), (9, "sketch-size: got 9; 'client-0' has max-sketch-size=8, use at most that")):
        config = RunConfig.from_flower(SMALL | {"privacy": "secure", "sketch-size": size})
        grid = InlineGrid(client_app, config.to_flower(), [simulated_nodes(3)[0] | {"max-sketch-size": 8}])
        (client,) = grid.get_node_ids()
        for request in (
            HelloRequest().to_message(client),
            DescribeRequest("initial-prototypes").to_message(client),
            TrainRequest(state, 1, signature=True).to_message(client),
        ):
            reason = asked(grid, request)
            assert (words in reason) if words else reason == ""


def test_a_run_goes_on_without_the_node_that_refuses_it(tmp_path: Path, messages: list[str]) -> None:
    config = RunConfig.from_flower(DP | {"output-dir": str(tmp_path / "run"), "method": "fedavg"})
    nodes = simulated_nodes(4)
    nodes[2] |= {"max-epsilon": 1.0}
    grid = RecordingGrid(client_app, config.to_flower(), nodes)
    summary = execute(config, grid)
    assert summary["clients_ok"] == 3
    assert json.loads((tmp_path / "run" / LEDGER).read_text()).keys() == {"client-0", "client-1", "client-3"}
    told = [line for line in messages if "cannot take part" in line]
    assert len(told) == 1
    assert "ConfigError: max-epsilon: 6 releases with dp-noise=2, for which this run may ask, come to" in told[0]


def test_packed_clients_have_a_budget_each() -> None:
    config = RunConfig.from_flower(DP | {"clients-per-node": 2, "method": "fedavg"})
    limit = {"max-epsilon": epsilon_of(6, 2.0, 1e-5)}
    grid = seated(InlineGrid(client_app, config.to_flower(), [own | limit for own in simulated_nodes(2)]), 2)
    state = get_state(build_model("mlp", (1, 8, 8), 10))

    def refused(number: int) -> list[bool]:
        requests = [EvaluateRequest(state, number).to_message(client) for client in grid.get_node_ids()]
        return [reply.has_error() for reply in grid.send_and_receive(requests)]

    assert [refused(number) for number in range(7)] == [[False] * 4] * 6 + [[True] * 4]
