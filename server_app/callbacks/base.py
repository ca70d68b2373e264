"""What a callback is: three hooks, called when a run begins, after each of its rounds, and when it is over."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from flwr.serverapp import Grid

from disue.data import Examples, RunData
from disue.models import Classifier, build_model
from server_app.config import RunConfig
from server_app.rows import Row, Rows
from server_app.run_directory import default_directory
from strategies.flower import FederatedStrategy
from strategies.methods.base import MethodState


@dataclass(frozen=True)
class RunContext:
    """A run, as its callbacks see it.

    Attributes
    ----------
    config : RunConfig
    grid : Grid
        Clients are asked through it.
    strategy : FederatedStrategy
        Knows the clients, the method, and what the last good round came to.
    data : RunData
        The task, and what the server knows of its data.
    test : Examples or None
        The server's test set, if it has one.
    device : torch.device
    rows : Rows
        Of the rounds that are over.
    during : ExitStack
        What a callback enters here is left when the rounds are over, the last first, before any callback is ended.
    """

    config: RunConfig
    grid: Grid
    strategy: FederatedStrategy
    data: RunData
    test: Examples | None
    device: torch.device
    rows: Rows
    during: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def directory(self) -> Path:
        """The run directory."""
        return default_directory(self.config)

    @property
    def parts(self) -> dict[str, object]:
        """What remembers something from round to round, by name."""
        return {"registry": self.strategy.registry, "strategy": self.strategy, "rows": self.rows}

    def model(self, name: str) -> Classifier:
        """Return a model of an architecture, with the run's initial weights."""
        task = self.data.task
        return build_model(name, task.shape, task.num_outputs, self.config.seed)


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Attributes
    ----------
    summary : dict
        The contents of ``summary.json``. Its ``status`` is ``completed``, ``stopped`` or ``failed``.
    state : MethodState or None
        What the method knows after the last round; None: the run leaves no models.
    error : BaseException or None
        Why the run failed.
    """

    summary: Row
    state: MethodState | None = None
    error: BaseException | None = None


class Callback:
    """What watches a run. A subclass overrides the hooks that it needs; here, they do nothing.

    An error in `begin` or `after_round` ends the run. A callback that has begun is ended once, however the run ends.
    """

    def begin(self, run: RunContext) -> None:
        """Begin. The run directory is this process's own, and no client trains yet.

        Parameters
        ----------
        run : RunContext
            It has rows already if the run goes on.
        """

    def after_round(self, run: RunContext, row: Row) -> None:
        """Take in a round that is over.

        Parameters
        ----------
        run : RunContext
        row : dict
            The round's line of ``metrics.jsonl``. What is added to it before `Recorder` is called is recorded, too.
        """

    def end(self, run: RunContext, end: RunEnd) -> None:
        """End. If that fails, the run has failed for the callbacks that follow.

        Parameters
        ----------
        run : RunContext
        end : RunEnd
        """


class OnRound(Callback):
    """Calls a function with the row of each round."""

    def __init__(self, tell: Callable[[Row], object]) -> None:
        self.tell = tell

    def after_round(self, run: RunContext, row: Row) -> None:
        """Call it."""
        self.tell(row)
