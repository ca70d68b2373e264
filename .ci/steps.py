"""Prints what each step of `.ci/run` took, before pytest's closing line: `pytest -p steps`.

`DISUE_STEPS` names a file with a line for each step, its seconds and its name; the last step is the run of the tests.
"""

import os
import time
from pathlib import Path

import pytest

STARTED = time.monotonic()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if "DISUE_STEPS" not in os.environ:
        return
    terminalreporter.section("seconds of each step")
    terminalreporter.write(Path(os.environ["DISUE_STEPS"]).read_text())
    terminalreporter.write_line(f"{time.monotonic() - STARTED:7.1f}  these tests, before their closing line")
