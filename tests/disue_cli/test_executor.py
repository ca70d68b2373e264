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
    for token in sys.argv[1:]:
        spec = ExecutionSpec(TaskType.CLIENT_APP, "localhost:9094", token, True, None, False, 12, False, 1)
        print(starter.launch(spec).status)
    if sys.argv[-1] == "wait":
        starter.close()
    for process in starter.started:
        process.join()
    print([process.exitcode for process in starter.started])
"""


def launched(directory: Path, *tokens: str) -> list[str]:
    """Return what is printed where client processes are started with these tokens."""
    (directory / "probe.py").write_text(PROBE)
    (directory / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(directory / "script.py"), *tokens]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_forked_client_has_the_imports_of_others_already_and_none_of_ours(tmp_path: Path) -> None:
    status, told, end = launched(tmp_path, "secret")
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
    assert [status, end] == ["accepted", "[0]"]


def test_what_still_runs_is_ended_with_the_executor(tmp_path: Path) -> None:
    assert launched(tmp_path, "wait") == ["accepted", "[-15]"]


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
