"""Malicious clients in whole runs: what they do to a run, and what the robust settings leave of it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.attacks import ATTACKS, AttackedApp, malicious_partitions, with_trigger
from disue.data import Examples, build_federation
from disue.errors import ConfigError
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import ROBUST, RunConfig
from server_app.run import execute

CLIENTS, GROUPS = 10, 2


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, float]]:
    """Run DisUE with one malicious client in each planted group: ``attacked("sign-flip", robust=True)``.

    The same is run once.
    """

    @cache
    def go(attack: str, **settings: object) -> dict[str, float]:
        config = RunConfig.from_flower(
            {
                "model": "mlp",
                "num-groups": GROUPS,
                "num-server-rounds": 3,
                "evaluate-every": 3,
                "report": False,
                "output-dir": str(tmp_path_factory.mktemp(attack) / "run"),
                **settings,
            }
        )
        malicious = malicious_partitions([i % GROUPS for i in range(CLIENTS)], 0.2, seed=0)
        app = AttackedApp(ATTACKS[attack], malicious)
        return execute(config, InlineGrid(app, config.to_flower(), simulated_nodes(CLIENTS)))

    return go


def test_one_of_five_in_each_group_is_malicious() -> None:
    groups = [i % 4 for i in range(20)]
    chosen = malicious_partitions(groups, 0.2, seed=1)
    assert sorted(groups[i] for i in chosen) == [0, 1, 2, 3]
    assert chosen != malicious_partitions(groups, 0.2, seed=2)


@pytest.mark.parametrize("attack", sorted(set(ATTACKS) - {"none"}))
def test_with_the_robust_settings_an_attack_costs_little_and_the_groups_are_found(attacked, attack: str) -> None:  # type: ignore[no-untyped-def]
    clean, robust = attacked("none"), attacked(attack, robust=True)
    assert robust["universal_accuracy"] > clean["universal_accuracy"] - 0.1
    if attack != "label-flip":  # flippers hold other data, and may well be on their own
        assert robust["ari"] == clean["ari"] == 1.0


def test_without_them_it_costs_much(attacked) -> None:  # type: ignore[no-untyped-def]
    """So that the test above can fail. Where what clients tell of their data counts, that makes good for most of it."""
    lost = {}
    for robust in (True, False):
        settings = {"prototype-weight": 0.0, "calibration-epochs": 0, "robust": robust}
        clean, flipped = (attacked(attack, **settings)["expert_accuracy"] for attack in ("none", "sign-flip"))
        lost[robust] = clean - flipped
    assert lost[True] < 0.05
    assert lost[False] > 0.2


def test_a_trigger_is_three_by_three_white_pixels_in_the_corner() -> None:
    task = build_federation(RunConfig(), 2).task
    x = torch.zeros(1, *task.shape)
    changed = with_trigger(x, task) - x
    assert changed.count_nonzero() == 9
    white = changed[0, 0, -1, -1] * task.std[0] + task.mean[0]
    assert float(white) == pytest.approx(1.0)


def test_half_of_the_data_with_a_backdoor_is_untouched() -> None:
    federation = build_federation(RunConfig(), 2)
    train = federation.client(0).train
    poisoned = ATTACKS["backdoor"].on_data(train, federation.task)
    assert isinstance(poisoned, Examples)
    assert torch.equal(poisoned.x[1::2], train.x[1::2])
    assert torch.equal(poisoned.y[1::2], train.y[1::2])
    assert bool((poisoned.y[::2] == 0).all())


def test_robust_stands_for_its_settings_and_refuses_others() -> None:
    config = RunConfig.from_flower({"robust": True})
    assert {key: getattr(config, key) for key in ROBUST} == ROBUST
    assert RunConfig.from_flower(config.to_flower()) == config
    with pytest.raises(ConfigError, match="aggregator: got 'krum'; robust=true sets it to 'multi-krum'"):
        RunConfig.from_flower({"robust": True, "aggregator": "krum"})


def test_the_page_names_what_robust_stands_for() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ROBUSTNESS.md").read_text()
    _, _, table = page.partition("<!-- robust -->\n")
    rows = [line.split("|")[1:3] for line in table.split("\n\n")[0].splitlines()[2:]]
    told = {key.strip(" `"): value.strip(" `") for key, value in rows}
    assert told == {
        key.replace("_", "-"): value if isinstance(value, str) else f"{value:g}" for key, value in ROBUST.items()
    }
