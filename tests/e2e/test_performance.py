"""Nothing has become more than a fifth slower than docs/PERFORMANCE.md says, in ratios."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def test_no_ratio_is_worse_by_more_than_a_fifth() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "regression.py"
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
