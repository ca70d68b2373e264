"""The experts that teach in a round, and what their clients told of the classes that they know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disue.models import State
from strategies.distillation.generator import Centres, Experts
from strategies.distillation.prototypes import FeatureSpace, Prototypes, coverage, in_common_units
from strategies.distillation.server import ProxySet, Server
from strategies.distillation.teachers import TeacherInputs
from strategies.teams import Team


@dataclass(frozen=True)
class TeacherEnsemble:
    """See the module.

    Prototypes are in the feature space of the model with which clients made them: those of a cluster that was not
    sampled are in that of an earlier universal expert, and architectures have theirs.

    Parameters
    ----------
    server : Server
        What the experts and the feature spaces are computed with.
    voters : dict of Team to State
        The experts.
    knowledge : dict of Team to Prototypes
        Of the teams' clients.
    spaces : dict of FeatureSpace to State
        The models that give the features of the spaces that the prototypes are in.
    """

    server: Server
    voters: Mapping[Team, State]
    knowledge: Mapping[Team, Prototypes]
    spaces: Mapping[FeatureSpace, State]

    @property
    def label_counts(self) -> Tensor:
        """Examples of each class that each expert's clients have, (experts, classes)."""
        return torch.stack([self.knowledge[team].pooled_counts for team in self.voters])

    def experts(self, average: State, log_priors: Tensor | None) -> Experts:
        """Return what a generator learns from.

        Parameters
        ----------
        average : State
            Of the run's own architecture.
        log_priors : (experts, classes) tensor, optional
            To be taken out of the experts' logits.
        """
        networks = [self.server.network(expert, team.model) for team, expert in self.voters.items()]
        centres = [self._centres(own) for own in self._teams_by_space().values()]
        return Experts(networks, self.label_counts, self.server.network(average), log_priors, centres)

    def features(self, x: Tensor) -> dict[FeatureSpace, Tensor]:
        """Return the features of inputs in each feature space, (samples, features)."""
        return {space: self.server.features(self.spaces[space], x, space.model) for space in self._teams_by_space()}

    def coverage(self, features: Mapping[FeatureSpace, Tensor]) -> float:
        """Return the mean of the spaces' `coverage`, each weighted by the examples of its clients."""
        spaces = {
            space: Prototypes.joined([self.knowledge[team].pooled() for team in teams])
            for space, teams in self._teams_by_space().items()
        }
        examples = sum(float(known.label_counts.sum()) for known in spaces.values())
        shares = {space: float(known.label_counts.sum()) / examples for space, known in spaces.items()}
        return sum(share * coverage(features[space], spaces[space]) for space, share in shares.items())

    def inputs(self, proxy: ProxySet, features: Mapping[FeatureSpace, Tensor]) -> TeacherInputs:
        """Return what the experts say of a proxy set, and how far it lies from their clients' prototypes."""
        known = {team: self.knowledge[team] for team in self.voters}
        spaces = [features[own.space] for own in known.values()]
        distances = [own.distances(space) for own, space in zip(known.values(), spaces, strict=True)]
        return TeacherInputs(
            expert_logits=torch.stack(
                [self.server.logits(expert, proxy.x, team.model) for team, expert in self.voters.items()]
            ),
            label_counts=self.label_counts,
            distances=in_common_units(distances, spaces),
            labels=proxy.labels,
        )

    def _teams_by_space(self) -> dict[FeatureSpace, list[Team]]:
        teams: dict[FeatureSpace, list[Team]] = {}
        for team in self.voters:
            teams.setdefault(self.knowledge[team].space, []).append(team)
        return teams

    def _centres(self, teams: Sequence[Team]) -> Centres:
        pooled = Prototypes.joined([self.knowledge[team] for team in teams])
        network = self.server.network(self.spaces[pooled.space], pooled.space.model)
        return Centres(network, pooled.centres, pooled.pooled_counts)
