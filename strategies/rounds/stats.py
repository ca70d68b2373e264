"""How many take part in a round, and what came of it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from disue.config import Changeable, Settings
from disue.models import State
from disue.wire import EvaluateReply
from strategies.updates import ClientUpdate, GroupSum


class ParticipationSettings(Settings):
    """Participation."""

    shared: ClassVar[bool] = True

    min_clients: Changeable[int] = Field(
        2, ge=1, le=10**6, description="fewest clients that must have joined, and answered, before the first round"
    )
    join_timeout: Changeable[float] = Field(
        20.0, ge=1e-6, le=1e7, description="seconds to wait at the start for min-clients to join and to answer"
    )
    fraction_train: float = Field(1.0, ge=1e-6, le=1.0, description="share of clients sampled for training")
    fraction_evaluate: float = Field(
        1.0, ge=1e-6, le=1.0, description="share of clients sampled for evaluation; after the last round all are"
    )
    round_timeout: Changeable[float] = Field(
        600.0, ge=1e-6, le=1e7, description="seconds that a phase waits for its replies"
    )
    min_success_fraction: Changeable[float] = Field(
        0.5,
        ge=1e-6,
        le=1.0,
        description="share of sampled clients that must send a usable update; a round with fewer is repeated once",
    )


@dataclass(frozen=True)
class Participation:
    """Who is asked, how often, and how many must answer."""

    num_rounds: int
    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    evaluate_every: int = 1
    min_success_fraction: float = 0.5


@dataclass
class RoundStats:
    """What one round did, for whoever watches: the recorder, the progress line, a test."""

    stateful: ClassVar[tuple[str, ...]] = ("server_round", "evaluations")

    server_round: int
    repeats: int = 0
    """How often the round was repeated; what it cost and who failed is counted in all attempts."""
    clients_ok: int = 0
    clients_failed: int = 0
    clients_rejected: int = 0
    client_steps: int = 0
    train_loss: float = float("nan")
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_evaluation: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("local", "clustering", "distillation", "evaluation"), 0.0)
    )
    clusters: dict[str, int] = field(default_factory=dict)
    evaluations: dict[str, EvaluateReply] = field(default_factory=dict)
    metrics: dict[str, float | int | bool] = field(default_factory=dict)
    """What the method and the collector have to say beside these."""
    label_counts: dict[str, Tensor] = field(default_factory=dict)
    """What clients told of their labels, (classes,) each."""
    averages: Mapping[str, State] = field(default_factory=dict)
    """For each architecture the weighted mean of the clients' models, with which the universal one is compared."""
    sheet: Tensor | None = None
    """Pictures of generated samples, (rows, columns, channels, height, width), pixels in 0..1."""
    on_phase: Callable[[int, str], None] = field(default=lambda number, phase: None, repr=False, compare=False)
    """Called with the round and the name of a phase as it begins."""

    def repeated(self) -> "RoundStats":
        """Return the beginning of another attempt: with what this one cost and who failed, and nothing else of it."""
        return RoundStats(
            self.server_round,
            repeats=self.repeats + 1,
            clients_failed=self.clients_failed,
            clients_rejected=self.clients_rejected,
            client_steps=self.client_steps,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            bytes_evaluation=self.bytes_evaluation,
            seconds=dict(self.seconds),
            on_phase=self.on_phase,
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds spent inside to a phase."""
        self.on_phase(self.server_round, phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def count(self, ok: int, asked: int, rejected: int) -> None:
        """Say how many of so many clients sent something usable, and how many sent what they must not."""
        self.clients_ok = ok
        self.clients_rejected += rejected
        self.clients_failed += asked - ok - rejected

    def tell(self, updates: Sequence[ClientUpdate | GroupSum]) -> None:
        """Say what the usable updates come to, and what single clients told of their labels."""
        self.client_steps += sum(update.steps for update in updates)
        self.label_counts |= {
            update.name: update.signature.label_counts
            for update in updates
            if update.signature is not None and len(update.clients) == 1
        }
        told = [update for update in updates if math.isfinite(update.train_loss)]
        if examples := sum(update.num_examples for update in told):
            self.train_loss = sum(update.train_loss * update.num_examples for update in told) / examples
