"""Prints what each step of `.ci/run` took, before pytest's closing line: `pytest -p steps`.

`DISUE_STEPS` names a file with a line for each step that is over: its seconds, a tab and its name. Machines differ, so
seconds come with units: those of the steps called `UNIT`, which import torch and Flower and do nothing else.
"""

import os
import time
from pathlib import Path
from statistics import median

import pytest

STARTED = time.monotonic()
UNIT = "unit"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    lines = [line.split("\t") for line in Path(os.environ["DISUE_STEPS"]).read_text().splitlines()]
    steps = [(float(seconds), name) for seconds, name in lines if name != UNIT]
    steps += [(time.monotonic() - STARTED, "real processes")]
    unit = median(float(seconds) for seconds, name in lines if name == UNIT)
    terminalreporter.section("steps")
    terminalreporter.write_line(f"A process that imports torch and Flower takes {unit:.2f} s: one unit.")
    terminalreporter.write_line("seconds   units  step")
    for seconds, name in steps:
        terminalreporter.write_line(f"{seconds:7.0f} {seconds / unit:7.0f}  {name}")
