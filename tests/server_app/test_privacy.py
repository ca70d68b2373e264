"""The accountant, the ledger of releases, and what is refused."""

import json
import logging
import math
import runpy
import sys
from pathlib import Path

import pytest
from common import FAST
from scipy.optimize import brentq
from scipy.stats import norm

from disue.errors import ConfigError, DataError
from disue_cli.engines.inline import run_inline
from server_app.callbacks import ledger
from server_app.callbacks.ledger import LEDGER, epsilon_of
from server_app.config import RunConfig
from server_app.report.reading import read_run
from server_app.report.words import cards, sentences
from server_app.resume import resumed_config
from server_app.run import preflight


def exact_epsilon(releases: int, noise: float, delta: float) -> float:
    """Return the epsilon of the Gaussian mechanism: Balle & Wang 2018, theorem 8.

    So many releases of one client are one of their lengths together, whose sensitivity is larger by the root.
    """
    mu = 2.0 * math.sqrt(releases) / noise  # two vectors in the unit ball are at most 2 apart

    def excess(epsilon: float) -> float:
        late = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - late - delta)

    return float(brentq(excess, 0.0, mu * mu / 2 + 20 * mu + 1))


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("releases", [1, 2, 30, 1000])
@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0, 4.0, 50.0])
def test_the_accountant_is_never_below_the_closed_form_and_little_above(
    noise: float, releases: int, delta: float
) -> None:
    exact, told = exact_epsilon(releases, noise, delta), epsilon_of(releases, noise, delta)
    assert exact <= told <= (1.25 if delta > 1e-5 else 1.125) * exact + 0.01


def test_the_accountant_does_not_make_every_log_line_come_twice() -> None:
    root = logging.getLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "handlers", [])
        for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
            patch.delitem(sys.modules, name)
        level = root.level
        epsilon_of(1, 4.0, 1e-5)
        assert "opacus" in sys.modules
        assert (root.handlers, root.level) == ([], level)


def test_epsilon_grows_with_releases_and_falls_with_noise() -> None:
    values = [epsilon_of(k, 4.0, 1e-5) for k in (1, 2, 5, 50)]
    assert values == sorted(values)
    assert epsilon_of(5, 8.0, 1e-5) < epsilon_of(5, 4.0, 1e-5) < epsilon_of(5, 4.0, 1e-7)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"method": "ifca"}, "method: got 'ifca'; privacy=dp does not cover a client's choice of a model, use another"),
        ({"clusterer": "ifca"}, "clusterer: got 'ifca'; privacy=dp does not cover a client's choice of a model"),
        ({"method": "pacfl"}, "method: got 'pacfl'; privacy=dp does not cover the subspace of a client's inputs"),
        ({"method": "stocfl"}, "method: got 'stocfl'; privacy=dp does not cover the gradient of a client's loss"),
        ({"method": "ccvr"}, "method: got 'ccvr'; privacy=dp does not cover how a client's features vary"),
        ({"signature": "subspace"}, "signature: got 'subspace'; .* use initial-prototypes or one made from updates"),
        (
            {"dataset": "own", "proxy": "generator"},
            "classes: got ''; with privacy=dp clients do not tell theirs, name all of them",
        ),
    ],
)
def test_what_would_break_the_claim_is_one_line(values: dict[str, str], line: str, tmp_path: Path) -> None:
    config = RunConfig.from_flower({"privacy": "dp", "output-dir": str(tmp_path / "r"), **values})
    with pytest.raises(ConfigError, match=f"^{line}"):
        preflight(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "value"), [("dp-noise", 0.0), ("dp-clip", 0.0), ("dp-delta", 0.0), ("dp-delta", 1.0)])
def test_no_noise_no_bound_and_no_delta_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got {value}; .* (greater|less) than"):
        RunConfig.from_flower({"privacy": "dp", key: value})


def test_a_missing_accountant_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = RunConfig.from_flower({"privacy": "dp", "output-dir": str(tmp_path / "r")})
    monkeypatch.setattr(ledger, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^privacy: got 'dp'; the accountant is missing, .* pip install 'disue\[dp\]'"
    ):
        preflight(config)
    preflight(config.model_copy(update={"privacy": "plain"}))


@pytest.mark.parametrize(
    ("values", "by_round"),
    [
        ({"method": "fedavg"}, [2, 4, 6]),  # update, evaluation
        ({"method": "fedavg", "evaluate-every": 2}, [1, 3, 5]),  # and after the last round
        ({}, [4, 7, 10]),  # a description; update, signature, evaluation
    ],
)
def test_releases_are_counted_and_reported(run, values: dict[str, object], by_round: list[int]) -> None:  # type: ignore[no-untyped-def]
    keys = {key.replace("-", "_"): value for key, value in values.items()}
    result = run(clients=3, privacy="dp", dp_noise=3.0, num_server_rounds=3, **keys)
    assert [row["releases"] for row in result.rows] == by_round
    assert [row["epsilon"] for row in result.rows] == [epsilon_of(count, 3.0, 1e-5) for count in by_round]
    told = {key: result.summary[key] for key in ("epsilon", "delta", "releases")}
    assert told == {"epsilon": result.rows[-1]["epsilon"], "delta": 1e-5, "releases": by_round[-1]}
    counted = json.loads((result.directory / LEDGER).read_text())
    assert counted == dict.fromkeys(["client-0", "client-1", "client-2"], by_round[-1])
    card = (result.directory / "MODEL_CARD.md").read_text()
    assert f"({result.summary['epsilon']:,.3g}, 1e-05)-differential privacy" in card
    assert f"after {by_round[-1]} releases" in card


def test_the_report_says_it(run) -> None:  # type: ignore[no-untyped-def]
    record = read_run(run(clients=3, privacy="dp", method="fedavg", dp_noise=10.0).directory)
    spent = f"{epsilon_of(4, 10.0, 1e-5):.3g}"
    card = cards(record)[-1]
    assert (card.value, card.title) == (spent, "epsilon")
    assert card.note == "at delta 1e-05, of the client that sent most: 4 noisy releases"
    assert f"({spent}, 1e-05)-differential privacy for all the data of a client" in sentences(record)[-1]
    assert len(cards(read_run(run(clients=3, method="fedavg").directory))) == 4


def test_the_client_with_the_most_releases_counts(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=6, privacy="dp", method="fedavg", fraction_train=0.5, num_server_rounds=3)
    counted = json.loads((result.directory / LEDGER).read_text())
    assert len(set(counted.values())) > 1
    assert result.summary["releases"] == max(counted.values())


def test_a_plain_run_says_nothing_of_a_budget(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=2, method="fedavg")
    assert not {"epsilon", "delta", "releases"} & result.summary.keys()
    assert not (result.directory / LEDGER).exists()
    assert "## Privacy" not in (result.directory / "MODEL_CARD.md").read_text()


def test_a_round_that_was_cut_off_counts_and_goes_on_counting(tmp_path: Path) -> None:
    """Killed after training and before the checkpoint: what was told then is told for good."""
    directory = tmp_path / "run"
    values = {"privacy": "dp", "method": "fedavg", "num-server-rounds": 3, "output-dir": str(directory)}

    def kill(row: dict[str, int]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(RunConfig.from_flower(FAST | values), 3, kill)
    rows: list[dict[str, int]] = []
    run_inline(resumed_config({"resume-from": str(directory)}), 3, rows.append)
    assert [row["releases"] for row in rows] == [6, 8]
    (directory / LEDGER).unlink()
    with pytest.raises(DataError, match="releases.json' cannot be read"):
        run_inline(resumed_config({"resume-from": str(directory), "num-server-rounds": 4}), 3)


def test_a_simulation_with_noise_can_be_repeated(run) -> None:  # type: ignore[no-untyped-def]
    def numbers() -> list[dict[str, object]]:
        rows = run(clients=3, privacy="dp", dp_noise=0.02).rows
        return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]

    assert numbers() == numbers()


def test_the_measurement_in_the_documents_runs() -> None:
    measure = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "privacy.py"))["measure"]
    quiet = FAST | {"method": "fedavg", "num-server-rounds": 1, "train-examples": 30}
    plain, private = measure(quiet, 3), measure(quiet | {"privacy": "dp", "dp-noise": 1e-6}, 3)
    assert (plain["releases"], private["releases"]) == (0, 2)
    assert private["own expert"] == pytest.approx(plain["own expert"], abs=0.02)
    assert private["universal"] == pytest.approx(plain["universal"], abs=0.02)
