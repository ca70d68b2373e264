"""What clients told of early features: a discriminant in a feature space that stays (`disue.early`)."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from disue.covariance import from_triangle
from disue.discriminant import Discriminant, positive, shrunk
from disue.early import num_early
from disue.signature import Signature
from strategies.aggregation.caps import Caps
from strategies.distillation.belief import believed, with_capped_counts
from strategies.distillation.discriminant import mean_points, scatter, sum_counts
from strategies.distillation.server import Server
from strategies.stored import stored
from strategies.teams import Team
from strategies.updates import ClientUpdate, Contribution

Ask = Callable[[Collection[str], tuple[int, int], bool], Mapping[str, Signature]]
Timed = Callable[[str], AbstractContextManager[None]]
ENOUGH = 10
"""Examples for each feature: clients are asked for a covariance until it is of so many."""
MOST_ASKED = 32
"""Clients that are asked for a covariance at once: it may be larger than a model."""
LARGEST_SHARE = 0.2
"""Of what is enough: no client's covariance counts for more examples."""
FEWEST = 3
"""Clients whose covariances are known before any counts: each is bounded by the others."""


@stored
@dataclass(frozen=True)
class EarlyStatistics:
    """See the module.

    Attributes
    ----------
    told : mapping of client to Signature
        Counts and means, as they were told last.
    digests : mapping of client to str or None
        Of the data that the client had trained on when it was asked.
    within : (features, features) tensor or None
        How features vary within the strata of one client, on the mean over ``examples``.
    examples : float
    traces : mapping of client to float
        Of the covariances that clients told, each client's first. None can be taken out of the mean.
    waiting : mapping of client to (features, features) tensor
        Covariances that are not in the mean, while there are fewer than `FEWEST`: of clients that are in ``told``.
    tried : tuple of client
        Those who were asked for a covariance.
    """

    told: Mapping[str, Signature] = field(default_factory=dict)
    digests: Mapping[str, str | None] = field(default_factory=dict)
    within: Tensor | None = None
    examples: float = 0.0
    traces: Mapping[str, float] = field(default_factory=dict)
    waiting: Mapping[str, Tensor] = field(default_factory=dict)
    tried: tuple[str, ...] = ()

    def to_ask(self, digests: Mapping[str, str | None], num_features: int) -> tuple[list[str], list[str]]:
        """Return those clients that are to be asked, first for a covariance, too, and then for counts and means alone.

        Parameters
        ----------
        digests : mapping of client to str or None
            Of the data of those who may be asked. Who told nothing yet, or of other data, is asked.
        num_features : int
            As long as a covariance is of too few examples for so many, clients that told none are asked for theirs,
            those first who never were.
        """
        lacking = self.examples < ENOUGH * num_features
        untold = sorted((name for name in digests if name not in self.traces), key=lambda name: name in self.tried)
        varying = untold[:MOST_ASKED] if lacking else []
        others = [name for name, own in digests.items() if name not in self.told or own != self.digests[name]]
        return varying, [name for name in others if name not in varying]

    def without_changed(self, digests: Mapping[str, str | None]) -> "EarlyStatistics":
        """Return it without the counts and means that clients told of other data than they have now."""
        return self._only(name for name, own in self.digests.items() if digests.get(name, own) == own)

    def with_told(
        self, told: Mapping[str, Signature], digests: Mapping[str, str | None], names: Collection[str], caps: Caps
    ) -> "EarlyStatistics":
        """Return what is known after clients told something; of clients that are not among ``names``, nothing.

        ``digests`` are of the data that those who told trained on. ``caps`` bound what clients tell of how features
        vary by what all others told of it, in whichever round, and how many examples it is of.
        """
        new = {
            name: positive(from_triangle(own.covariance.double()))
            for name, own in told.items()
            if own.covariance is not None and name not in self.traces
        }
        waiting = {**self.waiting, **new}
        traces = {**self.traces, **{name: float(own.trace()) for name, own in new.items()}}
        within, examples = self.within, self.examples
        if waiting and len(traces) >= FEWEST:
            capped, sizes = with_capped_counts({**self.told, **told}, caps), caps.variances(traces, waiting)
            for name, own in waiting.items():
                found = own * (sizes[name] / max(traces[name], 1e-300))
                count = min(float(capped[name].label_counts.sum()), LARGEST_SHARE * ENOUGH * len(found))
                within = found if within is None else within + (count / (examples + count)) * (found - within)
                examples += count
            waiting = {}
        means = {name: replace(own, covariance=None) for name, own in told.items()}
        of_data = {**self.digests, **digests}
        every = EarlyStatistics({**self.told, **means}, of_data, within, examples, traces, waiting, self.tried)
        return every._only(name for name in every.told if name in names)

    def _only(self, names: Iterable[str]) -> "EarlyStatistics":
        """Return it without what other clients told, but for what is in the mean."""
        told = {name: self.told[name] for name in names}
        waiting = {name: own for name, own in self.waiting.items() if name in told}
        forgotten = self.waiting.keys() - waiting.keys()
        traces = {name: own for name, own in self.traces.items() if name not in forgotten}
        digests = {name: self.digests[name] for name in told}
        return replace(self, told=told, digests=digests, traces=traces, waiting=waiting)

    def discriminant(
        self, teams: Sequence[Team], clusters: Mapping[str, int], caps: Caps, limit: float
    ) -> tuple[Sequence[Team], Discriminant | None]:
        """Return the discriminant of the clusters' clients, and the teams that it is of.

        Teams of a cluster of which nothing is known, or believed, are left out, if such clusters are fewer than half.
        Else there is no discriminant.

        Parameters
        ----------
        teams : sequence of Team
        clusters : mapping of client to cluster
        caps : Caps
        limit : float
            See `believed`. A client is compared with those of its cluster: others differ in kind.
        """
        trusted: dict[str, Signature] = {}
        for cluster in set(clusters.values()):
            own = {name: signature for name, signature in self.told.items() if clusters[name] == cluster}
            trusted |= believed(own, caps, limit)
        told: dict[int, list[Signature]] = {}
        for name, signature in with_capped_counts(trusted, caps).items():
            told.setdefault(clusters[name], []).append(signature)
        known = [team for team in teams if team.cluster in told]
        of_cluster = Counter(team.cluster for team in known)
        if self.within is None or 2 * len(of_cluster) <= len({team.cluster for team in teams}):
            return teams, None
        counts = {cluster: sum_counts(told[cluster]) for cluster in of_cluster}
        means = {cluster: mean_points(told[cluster]) for cluster in of_cluster}
        between = torch.zeros_like(self.within)
        for cluster, mean in means.items():
            for signature in told[cluster]:
                between += scatter(signature.label_counts, signature.prototypes - mean).double()
        pooled = self.within + between / float(torch.stack(list(counts.values())).sum())
        return known, Discriminant(
            torch.stack([counts[team.cluster] for team in known]),
            torch.stack([means[team.cluster] for team in known]),
            shrunk(pooled),
            shares=torch.tensor([1.0 / of_cluster[team.cluster] for team in known]),
        )


@dataclass(frozen=True)
class EarlyFeatures:
    """Asks clients of early features.

    Parameters
    ----------
    server : Server
    number : int
        How many there are; 0: none, and nobody is asked.
    """

    server: Server
    number: int

    @classmethod
    def of(cls, server: Server, wanted: int) -> "EarlyFeatures":
        """Return so many at most, as there is room for (`num_early`).

        There are none in a task whose outputs score no strata.
        """
        if not wanted or not server.task.scores_strata:
            return cls(server, 0)
        most = num_early(wanted, server.task.num_strata, server.initial(server.main))
        return cls(server, server.early_features(torch.zeros(1, *server.task.shape), most).shape[1])

    def updated(
        self,
        known: EarlyStatistics,
        updates: Sequence[Contribution],
        clusters: Mapping[str, int],
        caps: Caps,
        ask: Ask,
        timed: Timed = lambda phase: nullcontext(),
    ) -> EarlyStatistics:
        """Return what is known after clients are asked for what is not; ``ask`` is `Round.early`, ``timed`` its own."""
        if not self.number:
            return known
        digests = {own.name: own.digest for own in updates if isinstance(own, ClientUpdate)}
        known, shape = known.without_changed(digests), (self.server.task.num_strata, self.number)
        varying, others = known.to_ask(digests, self.number)
        known = replace(known, tried=(*known.tried, *(name for name in varying if name not in known.tried)))
        told = dict(ask(varying, shape, True)) if varying else {}
        told |= ask(others, shape, False) if others else {}
        with timed("clustering"):
            return known.with_told(told, {name: digests[name] for name in told}, clusters, caps)
