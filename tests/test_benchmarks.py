"""The scripts in benchmarks/ can be started as their own help says."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text()))
def test_a_script_starts_from_anywhere(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script}" in done.stdout
