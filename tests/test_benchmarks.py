"""The scripts in benchmarks/ can be started as their own help says, and the check of their ratios can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import regression
from benchmarks.regression import EXPECTED, Expected

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
ASK_ALL_FOR_HELP = """
import runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    sys.path[:], sys.argv = path, [script, "--help"]
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


def test_every_script_starts_from_anywhere(tmp_path: Path) -> None:
    scripts = sorted(path for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text())
    assert len(scripts) >= 9
    command = [sys.executable, "-c", ASK_ALL_FOR_HELP, *scripts]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"python benchmarks/{script.name}" in done.stdout for script in scripts)


@pytest.mark.parametrize(
    ("more_is_better", "found", "passes"),
    [(True, 0.81, True), (True, 0.79, False), (False, 1.19, True), (False, 1.21, False)],
)
def test_a_ratio_may_be_worse_by_a_fifth(more_is_better: bool, found: float, passes: bool) -> None:
    assert Expected("a.py", (), (), "ratio", 1.0, more_is_better).passes(found) is passes


@pytest.mark.parametrize(("slower", "again"), [(False, True), (True, True), (True, False)])
def test_a_script_that_became_slower_fails_the_check_if_it_is_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slower: bool, again: bool
) -> None:
    measured = {(one.script, one.ratio): one.measured for one in EXPECTED}
    first = EXPECTED[0]
    bad = 0.9 * first.limit if first.more_is_better else 1.1 * first.limit

    def measure(script: str, arguments: tuple[str, ...]) -> dict[str, float]:
        found = {ratio: value for (name, ratio), value in measured.items() if name == script}
        is_bad = slower and script == first.script and (again or arguments == first.quick)
        return found | ({first.ratio: bad} if is_bad else {})

    monkeypatch.setattr(regression, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["regression.py"])
    with pytest.raises(SystemExit) as end:
        regression.main()
    assert end.value.code == int(slower and again)
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()].count("WORSE") == int(slower and again)
