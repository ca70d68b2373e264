"""`disue executor`: what a forked client process has imported, is told, and how it ends; the rest is Flower's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, subprocess_executor

from disue.source import PACKAGES
from disue_cli.commands.executor import ForkingExecutor

PROBE = """
import json, sys, time

def answer(**arguments):
    if arguments["token"] == "wait":
        time.sleep(600)
    before = set(sys.modules)
    import client_app.app
    print(json.dumps({"arguments": arguments, "before": sorted(before), "after": sorted(sys.modules)}), flush=True)
"""
SCRIPT = """
import sys
import disue_cli.main
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from disue_cli.commands import executor
import probe

if __name__ == "__main__":
    executor.run_clientapp = probe.answer
    executor.hide_command()
    starter = executor.ForkingExecutor()
    for token in ("secret", "wait"):
        spec = ExecutionSpec(TaskType.CLIENT_APP, "localhost:9094", token, True, None, False, 12, False, 1)
        print(starter.launch(spec).status)
    first, second = starter.started
    first.join()
    starter.close()
    second.join()
    print([first.exitcode, second.exitcode])
"""


@pytest.mark.e2e
def test_a_forked_client_has_the_imports_of_others_already_and_none_of_ours(tmp_path: Path) -> None:
    """And one that still runs is ended with the executor."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    seen = json.loads(told)
    assert seen["arguments"] == {
        "runtime_api_address": "localhost:9094",
        "token": "secret",
        "insecure": True,
        "certificates": None,
        "parent_pid": 12,
        "runtime_dependency_install": False,
    }
    before, after = ({name.split(".")[0] for name in seen[when]} for when in ("before", "after"))
    assert not before & {*PACKAGES, "disue_cli"}
    others = {name for name in after - before if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert others == {"client_app", "disue"}
    assert done.stdout.count("accepted") == 2
    assert done.stdout.endswith("[0, -15]\n")


def test_every_other_process_is_started_as_flower_does(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def start(command: list[str], **streams: Any) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess_executor.subprocess, "Popen", start)
    ForkingExecutor().launch(ExecutionSpec(TaskType.SERVER_APP, "localhost:8000", "t", True, None, False, 12, True, 1))
    assert [command[0] for command in commands] == ["flwr-serverapp"]


def test_its_options_are_those_of_flower() -> None:
    command = [str(Path(sys.executable).parent / "disue"), "executor", "--executor", "nobody"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "argument --executor: invalid ExecutorType value: 'nobody'" in done.stderr
