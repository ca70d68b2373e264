"""`disue executor`: Flower's SuperExec, whose client processes are forked from one that has its imports already."""

import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.constant import ExecutorType, TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, Executor, LaunchResult, get_executor
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

IMPORTED = (
    "flwr.clientapp",
    "flwr.supernode.runtime.run_clientapp",
    "httpcore",
    "PIL.Image",
    "psutil",
    "pydantic",
    "safetensors.torch",
    "torch",
)
"""What a client needs of others. None of DisUE: that comes with each run."""


class ForkingExecutor(SubprocessExecutor):
    """Starts each client process as a fork of one that has done the imports; all other processes as Flower does.

    A client process answers one message, and most of its seconds would go to importing PyTorch.
    """

    def __init__(self, imported: Sequence[str] = IMPORTED) -> None:
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(imported))
        self.started: list[ForkServerProcess] = []

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a process for one task."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return super().launch(spec)
        arguments = {
            "runtime_api_address": spec.runtime_api_address,
            "token": spec.token,
            "insecure": spec.insecure,
            "certificates": validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            "parent_pid": spec.parent_pid,
            "runtime_dependency_install": spec.runtime_dependency_install,
        }
        process = self.context.Process(target=run_clientapp, kwargs=arguments)
        process.start()
        self.started = [*(one for one in self.started if one.is_alive()), process]
        return LaunchResult.accepted()

    def close(self) -> None:
        """End the client processes that still run; Python would wait for them."""
        for process in self.started:
            process.terminate()


def executor(arguments: Sequence[str]) -> None:
    """Run Flower's SuperExec with these options, and with clients that are forked where it starts processes itself."""

    def chosen(kind: ExecutorType, **settings: Any) -> Executor:
        found = get_executor(kind, **settings)
        return ForkingExecutor() if isinstance(found, SubprocessExecutor) else found

    vars(run_superexec)["get_executor"] = chosen
    hide_command()
    sys.argv = ["disue executor", *arguments]
    flower_superexec()


def hide_command() -> None:
    """Keep a forked process from importing this command, and with it the DisUE that is installed here."""
    main = sys.modules["__main__"]
    main.__spec__ = None
    vars(main).pop("__file__", None)
