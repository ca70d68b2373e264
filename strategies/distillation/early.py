"""What clients told of early features: a discriminant in a feature space that stays (`disue.early`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from disue.covariance import from_triangle
from disue.discriminant import Discriminant, shrunk
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
ENOUGH = 10
"""Examples for each feature: clients are asked for a covariance until it is of so many."""
MOST_ASKED = 32
"""Clients that are asked for a covariance at once: it may be larger than a model."""
LARGEST_SHARE = 0.2
"""Of what is enough: no client's covariance counts for more examples."""


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
    varied : tuple of client
        Those whose covariances are in that mean, each once. None can be taken out of it.
    """

    told: Mapping[str, Signature] = field(default_factory=dict)
    digests: Mapping[str, str | None] = field(default_factory=dict)
    within: Tensor | None = None
    examples: float = 0.0
    varied: tuple[str, ...] = ()

    def to_ask(self, digests: Mapping[str, str | None], num_features: int) -> tuple[list[str], list[str]]:
        """Return those clients that are to be asked, first for a covariance, too, and then for counts and means alone.

        Parameters
        ----------
        digests : mapping of client to str or None
            Of the data of those who may be asked. Who told nothing yet, or of other data, is asked.
        num_features : int
            As long as a covariance is of too few examples for so many, clients that told none are asked for theirs.
        """
        lacking = self.examples < ENOUGH * num_features
        varying = [name for name in digests if name not in self.varied][:MOST_ASKED] if lacking else []
        others = [name for name, own in digests.items() if name not in self.told or own != self.digests[name]]
        return varying, [name for name in others if name not in varying]

    def without_changed(self, digests: Mapping[str, str | None]) -> "EarlyStatistics":
        """Return it without the counts and means that clients told of other data than they have now."""
        told = {
            name: own for name, own in self.told.items() if digests.get(name, self.digests[name]) == self.digests[name]
        }
        return replace(self, told=told, digests={name: self.digests[name] for name in told})

    def with_told(
        self, told: Mapping[str, Signature], digests: Mapping[str, str | None], names: Collection[str], caps: Caps
    ) -> "EarlyStatistics":
        """Return what is known after clients told something; of clients that are not among ``names``, nothing.

        ``digests`` are of the data that those who told trained on. ``caps`` bound what they tell of how features vary
        by each other, and how many examples it is of.
        """
        within, examples, varied = self.within, self.examples, self.varied
        capped = with_capped_counts({**self.told, **told}, caps)
        for name, own in caps.features({name: capped[name] for name in told}).items():
            if own.covariance is None or name in varied:
                continue
            found = from_triangle(own.covariance.double())
            count = min(float(own.label_counts.sum()), LARGEST_SHARE * ENOUGH * len(found))
            within = found if within is None else within + (count / (examples + count)) * (found - within)
            examples, varied = examples + count, (*varied, name)
        means = {name: replace(own, covariance=None) for name, own in told.items()}
        known = {name: own for name, own in {**self.told, **means}.items() if name in names}
        of_data = {name: own for name, own in {**self.digests, **digests}.items() if name in known}
        return EarlyStatistics(known, of_data, within, examples, varied)

    def discriminant(
        self, teams: Sequence[Team], clusters: Mapping[str, int], caps: Caps, limit: float
    ) -> Discriminant | None:
        """Return the discriminant of the clusters' clients; None: too little is known.

        Parameters
        ----------
        teams : sequence of Team
        clusters : mapping of client to cluster
        caps : Caps
        limit : float
            See `believed`.
        """
        trusted = with_capped_counts(believed(self.told, caps, limit), caps)
        told = [[own for name, own in trusted.items() if clusters[name] == team.cluster] for team in teams]
        if self.within is None or not all(told):
            return None
        counts = torch.stack([sum_counts(own) for own in told])
        means = torch.stack([mean_points(own) for own in told])
        between = torch.zeros_like(self.within)
        for mean, signatures in zip(means, told, strict=True):
            for own in signatures:
                between += scatter(own.label_counts, own.prototypes - mean).double()
        pooled = self.within + between / float(counts.sum())
        return Discriminant(counts, means, shrunk(pooled))


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
    ) -> EarlyStatistics:
        """Return what is known after clients are asked for what is not; ``ask`` is `Round.early`."""
        if not self.number:
            return known
        digests = {own.name: own.digest for own in updates if isinstance(own, ClientUpdate)}
        known, shape = known.without_changed(digests), (self.server.task.num_strata, self.number)
        varying, others = known.to_ask(digests, self.number)
        told = dict(ask(varying, shape, True)) if varying else {}
        told |= ask(others, shape, False) if others else {}
        return known.with_told(told, {name: digests[name] for name in told}, clusters, caps)
