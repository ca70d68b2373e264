"""What clients told of early features: a discriminant in a feature space that stays (`disue.early`)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from disue.covariance import from_triangle
from disue.discriminant import Discriminant, shrunk
from disue.signature import Signature
from strategies.aggregation.caps import Caps
from strategies.distillation.belief import believed
from strategies.distillation.discriminant import mean_points, scatter, sum_counts
from strategies.stored import stored
from strategies.teams import Team

ENOUGH = 10
"""Examples for each feature: so many a covariance is of, before clients are asked for it no more."""
MOST_ASKED = 32
"""Clients that are asked for a covariance at once: it may be larger than a model."""


@stored
@dataclass(frozen=True)
class Early:
    """See the module.

    Attributes
    ----------
    told : mapping of client to Signature
        Counts and means, as they were told last.
    within : (features, features) tensor or None
        How features vary within the strata of one client, on the mean over ``examples``.
    examples : float
    """

    told: Mapping[str, Signature] = field(default_factory=dict)
    within: Tensor | None = None
    examples: float = 0.0

    def lacks(self, names: Iterable[str], changed: Collection[str]) -> list[str]:
        """Return the clients that are to be asked."""
        return [name for name in names if name not in self.told or name in changed]

    def lacks_covariance(self, num_features: int) -> bool:
        """Return whether clients are to be asked how features vary, too."""
        return self.examples < ENOUGH * num_features

    def with_told(self, told: Mapping[str, Signature], names: Collection[str], caps: Caps) -> "Early":
        """Return what is known after clients told something; of clients that are not among ``names``, nothing.

        ``caps`` bound what they tell of how features vary by each other.
        """
        within, examples = self.within, self.examples
        for own in caps.features({name: own for name, own in told.items() if own.covariance is not None}).values():
            assert own.covariance is not None
            count, found = float(own.label_counts.sum()), from_triangle(own.covariance.double())
            within = found if within is None else within + (count / (examples + count)) * (found - within)
            examples += count
        means = {name: replace(own, covariance=None) for name, own in told.items()}
        known = {name: own for name, own in {**self.told, **means}.items() if name in names}
        return Early(known, within, examples)

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
        trusted = believed(self.told, caps, limit)
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
