"""The experts that teach in a round, and what their clients told of the classes that they know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disue.covariance import looked_at
from disue.discriminant import Discriminant
from disue.models import State
from disue.prototypes import nearest_prototypes
from disue.runs.gate import Gate, Space
from disue.runs.gate import Knowledge as Known
from disue.signature import Signature
from strategies.distillation.discriminant import discriminant_of, mean_points, sum_counts
from strategies.distillation.generator import Centres, Experts
from strategies.distillation.knowledge import Knowledge, features_of
from strategies.distillation.prototypes import coverage, in_common_units
from strategies.distillation.server import ProxySet, Server
from strategies.distillation.teachers import TeacherInputs
from strategies.teams import Team


@dataclass(frozen=True)
class TeacherEnsemble:
    """See the module.

    Parameters
    ----------
    server : Server
        What the experts and the feature spaces are computed with.
    voters : dict of Team to State
        The experts.
    told : dict of Team to sequence of Signature
        By the teams' clients.
    knowledge : Knowledge
        Has the feature space of each architecture, in which that is.
    pooled : bool (default: False)
        Whether samples are compared with the mean prototypes of a team, and not with those of each client.
    early : Discriminant, optional
        In the space of early features, in the voters' order: what log densities are of, if there is one.
    """

    server: Server
    voters: Mapping[Team, State]
    told: Mapping[Team, Sequence[Signature]]
    knowledge: Knowledge
    pooled: bool = False
    early: Discriminant | None = None

    @property
    def label_counts(self) -> Tensor:
        """Examples of each class that each expert's clients have, (experts, classes)."""
        return torch.stack([sum_counts(self.told[team]) for team in self.voters])

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
        centres = [self._centres(model, teams) for model, teams in self._by_model().items()]
        return Experts(networks, self.label_counts, self.server.network(average), log_priors, centres)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of inputs in the space of each architecture, (samples, features)."""
        return {model: features_of(self.server, self.knowledge.spaces[model], x, model) for model in self._by_model()}

    def coverage(self, features: Mapping[str, Tensor]) -> float:
        """Return the mean of the spaces' `coverage`, each weighted by the examples of its clients."""
        found: list[tuple[float, float]] = []
        for model, teams in self._by_model().items():
            counts = torch.stack([sum_counts(self.told[team]) for team in teams])
            points = looked_at(torch.stack([mean_points(self.told[team]) for team in teams]))
            found.append((float(counts.sum()), coverage(features[model], counts, points)))
        return sum(examples * covered for examples, covered in found) / sum(examples for examples, _ in found)

    def inputs(self, proxy: ProxySet) -> TeacherInputs:
        """Return what the experts say of a proxy set, and what their clients' data say of it."""
        return TeacherInputs(
            lambda asked: self._logits(proxy.seen, asked),
            self.label_counts,
            find_distances=lambda: self._distances(self.features(proxy.seen)),
            find_log_densities=lambda: self._log_densities(proxy),
            labels=proxy.labels,
        )

    def discriminants(self, features: Mapping[str, Tensor] | None) -> dict[str, Discriminant]:
        """Return that of each space; ``features``: of a proxy set, as `features` returns them."""
        return {
            model: discriminant_of([self.told[team] for team in teams], None if features is None else features[model])
            for model, teams in self._by_model().items()
        }

    def _distances(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return squared distances to the nearest prototypes in common units, (experts, samples, classes)."""
        spaces = [features[team.model] for team in self.voters]
        distances = []
        for team, space in zip(self.voters, spaces, strict=True):
            own = self.told[team]
            if self.pooled:
                counts, points = sum_counts(own).unsqueeze(0), mean_points(own).unsqueeze(0)
            else:
                counts, points = (torch.stack([getattr(s, key) for s in own]) for key in ("label_counts", "prototypes"))
            points = looked_at(points)
            distances.append(nearest_prototypes(space, counts, points))
        return in_common_units(distances, spaces)

    def _logits(self, x: Tensor, asked: Tensor | None) -> Tensor:
        """Return logits, (experts, samples, outputs), zeros for samples that an expert is not asked for."""
        if asked is None:
            return torch.stack([self.server.logits(expert, x, team.model) for team, expert in self.voters.items()])
        found = torch.zeros(*asked.shape, self.server.task.num_outputs)
        for own, rows, (team, expert) in zip(found, asked, self.voters.items(), strict=True):
            if bool(rows.any()):
                own[rows] = self.server.logits(expert, x[rows], team.model)
        return found

    def _log_densities(self, proxy: ProxySet) -> Tensor:
        """Return log densities, (experts, samples, classes)."""
        if self.early is not None:
            most = self.early.means.shape[2]
            parts = (proxy.x, torch.cat(proxy.views)) if proxy.views else (proxy.x,)  # of the first they are kept
            return self.early.log_densities(torch.cat([self.server.early_features(x, most) for x in parts]))
        features = self.features(proxy.seen)
        found = self.discriminants(features)
        by_team: dict[Team, Tensor] = {}
        for model, teams in self._by_model().items():
            by_team |= zip(teams, found[model].log_densities(features[model]), strict=True)
        return torch.stack([by_team[team] for team in self.voters])

    def _by_model(self) -> dict[str, list[Team]]:
        models: dict[str, list[Team]] = {}
        for team in self.voters:
            models.setdefault(team.model, []).append(team)
        return models

    def _centres(self, model: str, teams: Sequence[Team]) -> Centres:
        told = [signature for team in teams for signature in self.told[team]]
        network = self.server.network(self.knowledge.spaces[model], model)
        return Centres(network, looked_at(mean_points(told)), sum_counts(told))

    def gate(self, inputs: Tensor | None, priors: Mapping[Team, Tensor]) -> Gate:
        """Return what tells whose a sample is, without the clients: of each expert's the sums.

        Parameters
        ----------
        inputs : (samples, *shape) tensor or None
            Of a proxy set: the background.
        priors : mapping of Team to (classes,) tensor
            Log label shares, as far as they are known.
        """
        gate = Gate()
        for space, own, teams in self._spaces(inputs):
            for team, counts, means in zip(teams, own.counts, own.means, strict=True):
                gate.experts[team.label(self.server.main)] = Known(
                    team.cluster, counts.unsqueeze(0), means.unsqueeze(0), len(gate.spaces), priors.get(team)
                )
            gate.spaces.append(space)
        return gate

    def _spaces(self, inputs: Tensor | None) -> list[tuple[Space, Discriminant, Sequence[Team]]]:
        """Return the spaces, each with the discriminant in it and the teams that this is of."""
        if self.early is not None:
            main, size = self.server.main, self.early.means.shape[2]
            space = Space(main, self.server.initial(main), self.early.covariance.float(), early=size)
            return [(space, self.early, list(self.voters))]
        found = self.discriminants(None if inputs is None else self.features(inputs))
        return [
            (
                Space(model, self.knowledge.spaces[model], found[model].covariance, found[model].background),
                found[model],
                teams,
            )
            for model, teams in self._by_model().items()
        ]
