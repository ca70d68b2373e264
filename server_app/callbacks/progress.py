"""Where a round is, in a small file, so that a run can be watched from outside while a round goes on."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from disue.files import write_passing
from server_app.callbacks.base import Callback, RunContext

PROGRESS = "progress.json"
SECONDS_BETWEEN_WRITES = 0.2
PHASES = {MessageType.TRAIN: "local", MessageType.EVALUATE: "evaluation"}


class Progress(Callback):
    """Writes ``progress.json``: round, rounds, phase, clients done of those asked, and what the round did before.

    Parameters
    ----------
    directory : Path
        The run directory.
    rounds : int
        In the whole run.
    clock : callable
        Gives seconds; another one in tests.
    """

    def __init__(self, directory: Path, rounds: int, clock: Callable[[], float] = time.time) -> None:
        self.path = directory / PROGRESS
        self.clock = clock
        self._written = 0.0
        self._state: dict[str, Any] = {"round": 0, "rounds": rounds, "phase": "start", "done": 0, "of": 0}
        self._state |= {"since": clock(), "finished": {}}

    def begin(self, run: RunContext) -> None:
        """Write that the run begins, and watch it while it does its rounds; the file is removed after them."""
        self._write()
        run.strategy.on_phase = self.phase
        run.during.enter_context(self.watching(run.grid))

    def phase(self, server_round: int, phase: str) -> None:
        """Note that a round is in another phase; what is noted of one that comes again is added up."""
        now, same_round = self.clock(), server_round == self._state["round"]
        if same_round and phase == self._state["phase"]:
            return
        ended = {"done": self._state["done"], "of": self._state["of"], "seconds": now - self._state["since"]}
        before = self._state["finished"].get(self._state["phase"], {})
        ended = {key: round(number + before.get(key, 0), 3) for key, number in ended.items()}
        self._state["finished"] = self._state["finished"] | {self._state["phase"]: ended} if same_round else {}
        self._state |= {"round": server_round, "phase": phase, "done": 0, "of": 0, "since": now}
        self._write()

    def ask(self, server_round: int, phase: str, clients: int) -> None:
        """Note that a round asks so many clients for something."""
        self.phase(server_round, phase)
        self._state |= {"done": 0, "of": clients}
        self._write()

    def answered(self, clients: int) -> None:
        """Note that so many clients more have answered."""
        self._state["done"] += clients
        if self.clock() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    @contextmanager
    def watching(self, grid: Grid) -> Iterator[None]:
        """Count what goes through a grid, and remove the file at the end.

        Whatever a grid does to send and receive, it does with its own ``push_messages`` and ``pull_messages``.
        """
        push, pull = grid.push_messages, grid.pull_messages

        def push_messages(messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            phases = {(message.metadata.group_id, PHASES.get(message.metadata.message_type)) for message in sent}
            for group, phase in phases:
                if phase is not None and group.isdecimal():
                    self.ask(int(group), phase, len(sent))
            return push(sent)

        def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(pull(message_ids))
            self.answered(sum(reply.metadata.message_type in PHASES for reply in replies))
            return replies

        grid.push_messages, grid.pull_messages = push_messages, pull_messages  # type: ignore[method-assign]
        try:
            yield
        finally:
            grid.push_messages, grid.pull_messages = push, pull  # type: ignore[method-assign]
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = self.clock()
        write_passing(self.path, json.dumps(self._state))
