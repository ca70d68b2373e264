"""What the tests of deployments stand on."""

import subprocess

import psutil
from deployment import kill, wait_for, words_of


def test_a_process_that_has_ended_has_no_words() -> None:
    """Those of a deployment come and go while they are looked at."""
    started = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(started.pid)
    wait_for(lambda: words_of(process) == ["sleep", "60"], 60, "it has begun")
    kill(process)
    assert words_of(process) == []
