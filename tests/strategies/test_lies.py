"""One client lies in a field of its messages: what that moves for the others. `benchmarks/lies.py` tries all fields."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks import ATTACKS, AttackedApp
from benchmarks.lies import CLIENTS, SETTINGS, Lie, honest_accuracies, needs_robust, run, worst
from disue.cli.inline import InlineGrid, simulated_nodes
from disue.config import RunConfig
from server_app.run import execute

MOST = 0.05
"""What an honest client may lose of its accuracy."""
SEED = 100


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], dict[int, float]]:
    """Return the accuracies of a run without a liar, with and without the robust settings."""
    known: dict[bool, dict[int, float]] = {}

    def accuracies(robust: bool) -> dict[int, float]:
        if robust not in known:
            known[robust] = run(None, SEED, tmp_path_factory.mktemp("honest") / "r", robust=robust)[0]
        return known[robust]

    return accuracies


@pytest.mark.parametrize(
    "lie",
    [
        Lie("train", "metrics", "num-examples", 10**7),
        Lie("train", "metrics", "train-loss", 1e9),
        Lie("train", "signature", "label-counts", "all in the first"),
        Lie("train", "signature", "label-counts", 1e-45),
        Lie("train", "signature", "prototypes", 1e6),
        Lie("train", "signature", "prototypes", 1e38),
        Lie("train", "arrays", "*", 1e6),
        Lie("query.describe", "signature", "description", 1e38),
        Lie("evaluate", "metrics", "num-examples", 2**63 - 1),
        Lie("evaluate", "metrics", "universal-fit", 1e9),
        Lie("query", "metrics", "num-partitions", 10**7),
        Lie("query", "config", "model", "nobody"),
    ],
    ids=str,
)
def test_no_honest_client_loses_much_and_the_run_is_whole(lie: Lie, honest: Any, tmp_path: Path) -> None:
    accuracies, _, summary = run(lie, SEED, tmp_path / "r", robust=needs_robust(lie))
    assert summary["status"] == "completed"
    assert worst(honest(needs_robust(lie)), accuracies) <= MOST
    written = "".join(path.read_text() for path in (tmp_path / "r").iterdir() if path.suffix in (".csv", ".json"))
    assert "nan" not in written.lower()
    assert (tmp_path / "r" / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("attack", ["claimed-examples", "claimed-labels", "claimed-fits"])
def test_claims_of_several_fields_cost_no_honest_client_much(
    attack: str, honest: Any, tmp_path: Path, messages: list[str]
) -> None:
    config = RunConfig.from_flower(SETTINGS | {"seed": SEED, "output-dir": str(tmp_path / "r")})
    app = AttackedApp(ATTACKS[attack], {0})
    execute(config, InlineGrid(app, config.to_flower(), simulated_nodes(CLIENTS)))
    assert worst(honest(False), honest_accuracies(config, tmp_path / "r", liar=0)) <= MOST
    said = [line for line in messages if "client-0 says num-examples of 1e+07; it counts as" in line]
    assert len(said) == (attack != "claimed-fits")  # once in a run


def test_without_the_cap_a_claim_is_the_model(tmp_path: Path, honest: Any) -> None:
    """So that the tests above can fail; and who has so unequal clients can raise it."""
    lie = Lie("train", "metrics", "num-examples", 10**7)
    settings = {"max-weight": 0.0, "method": "fedavg"}
    rows = []
    for name, told in (("honest", None), ("lie", lie)):
        _, _, summary = run(told, SEED, tmp_path / name, **settings)
        rows.append(summary["universal_accuracy"])
        json.loads((tmp_path / name / "summary.json").read_text())
    assert rows[1] < rows[0] - 0.1
