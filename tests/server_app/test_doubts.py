"""Settings that ask for what there is not are told of, by a line each."""

from typing import Any

import numpy as np
import pytest

from disue.data import build_federation
from disue.data.scenarios import NO_GROUP, ONE_GROUP, SCENARIOS, USE_ALPHA
from server_app.config import RunConfig
from server_app.doubts import doubts

NO_GROUPS = "num-groups: got 5; scenario 'dirichlet' plants no groups, so it changes nothing"


@pytest.mark.parametrize(
    ("settings", "clients", "expected"),
    [
        ({"num_groups": 20}, 12, ["num-groups: got 20; there are 12 clients, so 8 of the groups are empty"]),
        ({"num_groups": 3, "scenario": "rotation"}, 2, ["num-groups: got 3; there are 2 clients, so 1 of the"]),
        ({"num_groups": 12, "scenario": "label-swap"}, 12, []),
        ({"num_groups": 5, "scenario": "dirichlet", "alpha": 10.0}, 12, [NO_GROUPS]),
        ({"num_groups": 5, "scenario": "dirichlet", "alpha": 10.0, "method": "ifca"}, 12, []),
        (
            {"num_groups": 5, "scenario": "dirichlet", "alpha": 10.0, "method": "ifca", "num_clusters": 2},
            12,
            [NO_GROUPS],
        ),
        (
            {"scenario": "quantity", "alpha": 0.01},
            12,
            ["scenario 'quantity' with alpha 0.01 leaves 11 of 12 clients no"],
        ),
        ({"scenario": "quantity", "alpha": 0.01, "train_examples": 2}, 12, []),
        ({"scenario": "iid"}, 12, []),
        ({"num_groups": 1}, 4, []),
        ({"num_groups": 1, "scenario": "rotation"}, 4, []),
        ({"num_groups": 3}, 1, ["num-groups: got 3; there is 1 client, so 2 of the groups are empty"]),
        ({"num_groups": 5, "scenario": "iid"}, 4, ["num-groups: got 5; scenario 'iid' plants no groups, so"]),
        ({"num_groups": 5, "scenario": "quantity", "alpha": 5.0}, 1, ["num-groups: got 5; scenario 'quantity' plants"]),
        ({"scenario": "iid", "train_examples": 3}, 12, ["train-examples 3, with scenario 'iid', leaves "]),
        ({"scenario": "rotation", "train_examples": 3}, 12, ["train-examples 3, with scenario 'rotation', leaves "]),
        ({"scenario": "shards", "train_examples": 3}, 12, ["train-examples 3, with scenario 'shards', leaves "]),
        (
            {"scenario": "quantity", "train_examples": 3, "alpha": 0.5},
            12,
            ["train-examples 3, with scenario 'quantity' and alpha 0.5, leaves "],
        ),
        (
            {"scenario": "iid", "train_examples": 0, "proxy_size": 1000},
            150,
            ["dataset 'digits', with scenario 'iid', leaves "],
        ),
        ({}, 12, []),
    ],
)
def test_what_cannot_be_given_is_said(settings: dict[str, Any], clients: int, expected: list[str]) -> None:
    config = RunConfig(**settings)
    found = doubts(config, build_federation(config, clients))
    assert len(found) == len(expected)
    assert all(line.startswith(words) for line, words in zip(found, expected, strict=True))
    assert doubts(config, "data of their own") == []


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_what_a_scenario_is_said_to_use_it_uses(scenario: str) -> None:
    usual, skewed, grouped = (
        build_federation(RunConfig(scenario=scenario, alpha=alpha, num_groups=groups), 6).scenario
        for alpha, groups in ((0.5, 2), (5.0, 2), (0.5, 3))
    )
    assert np.array_equal(usual.shares, skewed.shares) != (scenario in USE_ALPHA)
    counted = usual.num_groups != grouped.num_groups
    assert counted != (scenario in ONE_GROUP or bool(usual.groups.min() == NO_GROUP))


def test_a_run_says_it_once(run, messages: list[str]) -> None:  # type: ignore[no-untyped-def]
    run(clients=4, num_groups=6, num_server_rounds=1, method="fedavg")
    assert messages.count("num-groups: got 6; there are 4 clients, so 2 of the groups are empty") == 1
