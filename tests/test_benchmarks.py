"""The scripts in benchmarks/ can be started as their own help says, and the check of their ratios can fail."""

import csv
import json
import re
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from common import FAST
from PIL import Image
from scipy.stats import t
from tests_support import numbered_classes

from benchmarks import regression, startup
from benchmarks.phases import rows_of
from benchmarks.regression import EXPECTED, Expected
from benchmarks.sketches import described
from benchmarks.verdict import differences, draw, means, verdict
from benchmarks.verdict import main as verdict_main
from client_app.describe import initial_prototypes, make_signature
from disue.data import Examples, build_federation
from disue.models import build_model
from server_app.config import RunConfig

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
RUN_ALL = """
import json, runpy, sys
path = list(sys.path)
for script, words, expected in json.loads(sys.argv[1]):
    sys.path[:], sys.argv = path, [script, *words]
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert (end.code or 0) == expected, (script, end.code)
"""


def scripts_with(text: str) -> list[Path]:
    """Return the scripts in whose source a regular expression is found."""
    return sorted(path for path in SCRIPTS.glob("*.py") if re.search(text, path.read_text()))


@pytest.mark.e2e
def test_every_script_starts_from_anywhere_and_a_bad_value_is_one_line(tmp_path: Path) -> None:
    scripts = scripts_with("__main__")
    assert len(scripts) >= 9
    calls = [(str(script), ["--help"], 0) for script in scripts]
    bad = {"--seeds": "0-x", "--set": "alpha"}
    taking = {option: scripts_with(rf'add_argument\(\s*"{option}"') for option in bad}
    for option, value in bad.items():
        calls += [(str(script), ["--output", str(tmp_path), option, value], 2) for script in taking[option]]
    command = [sys.executable, "-c", RUN_ALL, json.dumps(calls)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"python benchmarks/{script.name}" in done.stdout for script in scripts)
    for option, value in bad.items():
        assert done.stderr.count(f"argument {option}: got '{value}'") == len(taking[option]) > 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more_is_better", "found", "verdict"),
    [
        (True, 0.81, "ok"),
        (True, 0.79, "WORSE"),
        (True, 2.1, "BETTER"),
        (False, 1.19, "ok"),
        (False, 1.21, "WORSE"),
        (False, 0.0, "BETTER"),
    ],
)
def test_a_ratio_may_be_worse_by_a_fifth_and_is_believed_up_to_twice_as_good(
    more_is_better: bool, found: float, verdict: str
) -> None:
    assert Expected("a.py", (), (), "ratio", 1.0, more_is_better).verdict(found) == verdict


@pytest.mark.parametrize("verdict", ["WORSE", "BETTER"])
@pytest.mark.parametrize(("changed", "again"), [(False, True), (True, True), (True, False)])
def test_a_script_whose_ratio_changed_fails_the_check_if_it_has_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: bool, again: bool, verdict: str
) -> None:
    measured = {(one.script, one.ratio): one.measured for one in EXPECTED}
    first = EXPECTED[0]
    bad = next(x for x in (0.0, 9.0) if first.verdict(x) == verdict)

    def measure(script: str, arguments: tuple[str, ...]) -> dict[str, float]:
        found = {ratio: value for (name, ratio), value in measured.items() if name == script}
        is_bad = changed and script == first.script and (again or arguments == first.quick)
        return found | ({first.ratio: bad} if is_bad else {})

    monkeypatch.setattr(regression, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["regression.py"])
    with pytest.raises(SystemExit) as end:
        regression.main()
    assert end.value.code == int(changed and again)
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()].count(verdict) == int(changed and again)


@pytest.mark.e2e
def test_the_client_whose_start_is_measured_trains() -> None:
    subprocess.run([sys.executable, "-c", startup.CLIENT], check=True)


def test_who_fits_label_shares_to_sketches_knows_what_a_client_tells() -> None:
    """With the client's own class means what is played is the description itself, but for rounding."""
    task = numbered_classes(4)
    data = Examples(torch.randn(60, *task.shape, generator=torch.Generator().manual_seed(0)), torch.arange(60) ** 2 % 4)
    model, cpu = build_model("mlp", task.shape, 4), torch.device("cpu")
    counts = task.count_strata(data.y)
    played = described(counts / counts.sum(), make_signature(model, data, cpu, task).prototypes)
    torch.testing.assert_close(played, initial_prototypes(model, data, cpu, task).flatten())


def test_a_verdict_names_the_best_rival_of_each_kind_and_the_paired_difference(tmp_path: Path) -> None:
    accuracies = {
        "disue": (0.80, 0.84, 0.82),
        "disue:teacher=mean": (0.9, 0.9, 0.9),  # itself, in another form
        "fedavg": (0.70, 0.72, 0.71),
        "ccvr:virtual-features=8": (0.79, 0.81, 0.80),
        "ifca": (0.83, 0.85, 0.84),  # is told how many groups there are
        "ditto": (0.99, 0.99),  # not in all seeds
    }
    rows = [
        {"dataset": "digits", "scenario": "iid", "method": method, "seed": str(seed)}
        | dict.fromkeys(("universal_accuracy", "expert_accuracy", "worst_decile_accuracy"), str(found))
        for method, own in accuracies.items()
        for seed, found in enumerate(own)
    ]
    other = [row | {"scenario": "rotation", "universal_accuracy": row["expert_accuracy"]} for row in rows]
    for row in other:
        if row["method"] == "disue":
            row["universal_accuracy"] = str(float(row["universal_accuracy"]) + 0.02)
    _, _, first, *_, mean, _, _ = verdict(differences(rows + other, "disue"), "disue", ["iid", "rotation"]).splitlines()
    assert mean == "| digits, mean | universal | 0.830 |  | +0.030 |  | -0.010 |"
    draw(differences(rows, "disue"), tmp_path / "verdict.png")
    assert Image.open(tmp_path / "verdict.png").size[0] > 500
    half = t.ppf(0.975, 2) * 0.01 / sqrt(3.0)
    assert first == (
        "| digits, iid | universal | 0.820 | 0.800 (ccvr:virtual-features=8) "
        f"| +0.020 ± {half:.3f} | 0.840 (ifca) | -0.020 ± {half:.3f} |"
    )
    header, _, own, *others = means(rows + other, "disue").splitlines()
    assert header == "| digits: universal / expert | iid | rotation |"
    assert own == "| disue | 0.820 / 0.820 | 0.840 / 0.820 |"
    assert others[-1] == "| ditto | - | - |", "it was not run with all seeds"


def test_a_scenario_that_is_nowhere_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(Path(__file__).parents[1] / "docs" / "results" / "main.csv")
    monkeypatch.setattr(sys, "argv", ["verdict.py", path, "--method", "fedavg", "--mean", "rotatoin"])
    with pytest.raises(SystemExit):
        verdict_main()
    assert "--mean: got 'rotatoin'; there are label-groups, rotation, dirichlet, label-swap" in capsys.readouterr().err


def test_what_is_looked_at_in_a_round_is_what_the_run_says_of_it(tmp_path: Path) -> None:
    values = FAST | {"scenario": "rotation", "num-groups": 2, "num-clusters": 2}
    rows = rows_of(values, 6, tmp_path / "run")
    with (tmp_path / "run" / "clients.csv").open(newline="") as file:
        clients = list(csv.DictReader(file))
    federation = build_federation(RunConfig.from_flower(values), 6)
    tests = [len(federation.client(i).test) for i in range(6)]
    told = [float(client["universal_accuracy"]) for client in clients]
    assert rows[-1]["universal"] == pytest.approx(np.average(told, weights=tests), abs=1e-4)  # to four digits
    shares = [json.loads(line)["student_share"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["share"] for row in rows] == shares
    for row in rows:  # by each sample's own expert is no worse than by the wrong ones
        assert row["oracle gate"] > row["average"]
