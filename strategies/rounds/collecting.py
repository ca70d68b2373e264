"""How the clients' updates come to the server: one by one, or as sums of which it sees no part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from disue.errors import FederationError, TooFewUpdates
from disue.models import State
from disue.privacy.secagg import vector_sizes
from disue.signature import NOTHING, SignatureParts
from disue.wire import TrainReply
from strategies.aggregation.limits import Lengths, Limits
from strategies.aggregation.store import UpdateStore
from strategies.rounds.attempt import Attempt, Sent
from strategies.rounds.secure_sums import SecureSums
from strategies.updates import ClientSketch, ClientUpdate, Contribution, SecondModel


@dataclass(frozen=True)
class Received:
    """What one client sent.

    Attributes
    ----------
    update : ClientUpdate or ClientSketch
    length : float
        The norm of the update; not a number where it is not looked at.
    """

    update: ClientUpdate | ClientSketch
    length: float = math.nan


@dataclass(frozen=True)
class Accepted:
    """What may touch a model, and why the rest of what clients sent may not."""

    updates: Sequence[ClientUpdate | ClientSketch]
    rejected: Mapping[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> list[ClientUpdate]:
        """The updates that the server sees one by one."""
        return [update for update in self.updates if isinstance(update, ClientUpdate)]


@dataclass(frozen=True)
class Clustered:
    """What was accepted, and who belongs together.

    Attributes
    ----------
    updates : sequence of ClientUpdate or ClientSketch
        As `Collector.accept` returned them.
    clusters : mapping of client to cluster
    like : State
        A model of the run's own architecture.
    """

    updates: Sequence[ClientUpdate | ClientSketch]
    clusters: Mapping[str, int]
    like: State


class Collector(Protocol):
    """The updates of a round, from the replies to what the method aggregates."""

    def begin(self) -> None:
        """Forget the round before."""

    def read(self, message: Message, sent: Sent) -> Received:
        """Return what a client sent.

        Raises
        ------
        WireError
            If it is not what it must be.
        """

    def accept(self, received: Sequence[Received]) -> Accepted:
        """Look at what came beside each other; ``received``: sorted by client name."""

    def contributions(self, clustered: Clustered, attempt: Attempt) -> Sequence[Contribution]:
        """Return what the method aggregates, and count it.

        Raises
        ------
        TooFewUpdates
            If there are too few, and the round may be repeated.
        FederationError
            If there are too few, and it may not.
        """


class PlainCollector:
    """Each client's update as it is.

    Parameters
    ----------
    limits : Limits
        What an update may be and weigh.
    store : UpdateStore
        Keeps the models until they are averaged.
    parts : SignatureParts
        What clients tell of their data.
    """

    def __init__(
        self, limits: Limits | None = None, store: UpdateStore | None = None, parts: SignatureParts = NOTHING
    ) -> None:
        self.limits = limits or Limits()
        self.store = store or UpdateStore()
        self.parts = parts
        self._lengths = Lengths()

    def begin(self) -> None:
        """Forget the models of the round before."""
        self.store.clear()
        self._lengths = Lengths()

    def read(self, message: Message, sent: Sent) -> Received:
        """Return a client's update, and its length where that is bounded: now its model is at hand."""
        reply = TrainReply.from_message(
            message,
            sent.universal,
            self.parts,
            num_candidates=len(sent.candidates),
            max_examples=self.limits.max_examples,
            second=sent.second is not None,
        )
        second = None
        if sent.second is not None and reply.second is not None:
            second = SecondModel(sent.second, self.store.put(reply.second))
        update = ClientUpdate(
            name=sent.name,
            start=sent.start or sent.candidates[reply.choice or 0],
            state=self.store.put(reply.state),
            num_examples=reply.num_examples,
            signature=reply.signature,
            choice=reply.choice,
            train_loss=math.nan if reply.train_loss is None else reply.train_loss,
            steps=reply.steps,
            second=second,
            digest=reply.digest,
        )
        return Received(update, self._lengths.of(update) if self.limits.measuring else math.nan)

    def accept(self, received: Sequence[Received]) -> Accepted:
        """Reject what is too long beside the others, cap what clients claim to stand for, and clip."""
        updates = [own.update for own in received if isinstance(own.update, ClientUpdate)]
        lengths = {own.update.name: own.length for own in received}
        rejected = self.limits.implausible(updates, lengths)
        weighed = self.limits.weighed([update for update in updates if update.name not in rejected])
        return Accepted(self.limits.clipped(weighed, lengths, self.store.put), rejected)

    def contributions(self, clustered: Clustered, attempt: Attempt) -> Sequence[ClientUpdate]:
        """Return the updates, none of which stands for more examples than it may in its cluster."""
        updates = [own for own in clustered.updates if isinstance(own, ClientUpdate)]
        return self.limits.weighed_in(updates, clustered.clusters)


class SecureCollector:
    """The sum of each cluster's updates, by secure aggregation.

    Parameters
    ----------
    sums : SecureSums
    parts : SignatureParts
        What clients tell of their data.
    """

    def __init__(self, sums: SecureSums, parts: SignatureParts = NOTHING) -> None:
        self.sums = sums
        self.parts = parts

    def begin(self) -> None:
        """Begin a round."""
        self.sums.begin()

    def read(self, message: Message, sent: Sent) -> Received:
        """Return the sketch of a client that has trained."""
        return Received(self.sums.read(message, sent.name))

    def accept(self, received: Sequence[Received]) -> Accepted:
        """Accept all: nothing of an update can be seen."""
        return Accepted([own.update for own in received])

    def contributions(self, clustered: Clustered, attempt: Attempt) -> Sequence[Contribution]:
        """Return the sum of each cluster.

        If too few clients would be in the sums, these are not unmasked, and the round may be repeated: of one round no
        client may be in two sums, or their difference would show its update.
        """
        sums, stats, like = self.sums, attempt.stats, clustered.like
        sums.tell = attempt.replies.tell_problem
        trained = [own for own in clustered.updates if isinstance(own, ClientSketch)]
        with stats.timed("local"):
            values = sum(vector_sizes(like, self.parts))
            sums.gather(stats.server_round, trained, clustered.clusters, values, attempt.ask)
        try:
            attempt.require_enough(sums.present)
        except TooFewUpdates:
            stats.count(0, len(trained) - len(sums.present), len(sums.rejected))
            raise
        with stats.timed("local"):
            starts = {sent.name: sent.start for sent in attempt.sent.values() if sent.start is not None}
            summed = sums.unmask(like, self.parts, starts, attempt.ask)
        stats.metrics["clusters_lost"] = len(sums.lost)
        stats.count(sum(len(own.clients) for own in summed), len(trained), len(sums.rejected))
        stats.tell(summed)
        try:
            attempt.require(stats.clients_ok)
        except TooFewUpdates as error:
            raise FederationError(f"{error}; no sum of this round may be taken again") from None
        return summed
