"""Phase U: the experts teach the universal expert of each architecture on a proxy set."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from logging import WARNING

import torch
from flwr.common.logger import log
from torch import Tensor

from disue.models import State, same_model
from strategies.distillation.distiller import Distiller
from strategies.distillation.ensemble import TeacherEnsemble
from strategies.distillation.generator import GeneratorState
from strategies.distillation.server import ProxySource, Server
from strategies.distillation.teachers import (
    Teacher,
    VoteSummary,
    estimated_log_priors,
    vote,
    vote_summary,
)
from strategies.teams import Team

Priors = Mapping[Team, Tensor]


@dataclass(frozen=True)
class Lesson:
    """What the experts taught.

    Attributes
    ----------
    models : dict of architecture to State
        The universal experts; an architecture's average where nothing was taught. Where clients are to be the guard,
        the students.
    priors : mapping of Team to (classes,) tensor
        Log label shares of the teams' clients, as far as they are told or estimated.
    memory : GeneratorState or None
        What the proxy source remembers.
    coverage : float
        Of a foreign proxy set, how much of what classes are told apart by is in it, 0 to 1; else 1.
    votes : VoteSummary or None
        Who taught what; None: nobody taught.
    metrics : dict of str to number
    sheet : (rows, columns, channels, height, width) tensor, optional
        Generated samples for the eye.
    """

    models: dict[str, State]
    priors: Priors
    memory: GeneratorState | None
    coverage: float = 1.0
    votes: VoteSummary | None = None
    metrics: dict[str, float | int | bool] = field(default_factory=dict)
    sheet: Tensor | None = None


@dataclass(frozen=True)
class UniversalDistillation:
    """The vote of the experts, and how it is taught.

    Parameters
    ----------
    server : Server
        Models, device and seed.
    proxy : ProxySource
        Gives the proxy set of a round.
    teacher : callable
        From `TeacherInputs` to how much each expert counts on each proxy sample.
    distiller : Distiller
        Teaches the universal expert.
    prior_correction : bool (default: True)
        Take each cluster's label prior out of its expert's logits, where it is known.
    evidence_weight : float (default: 1.0)
        Of the evidence of the classes that clients told, beside the experts' vote. It is for tasks that score strata;
        else the experts' outputs are all that is voted with.
    label_counts_shared : bool (default: True)
        Whether clients tell their label counts. If not, the priors are estimated on the proxy set.
    foreign_proxy : bool (default: False)
        Whether the proxy set is of other data than the task's. Then its `coverage` makes the student's share in the
        universal expert smaller.
    guarded : bool (default: True)
        Whether the proxy set is the guard: what of the student is taken is decided here.
    """

    server: Server
    proxy: ProxySource
    teacher: Teacher
    distiller: Distiller
    prior_correction: bool = True
    evidence_weight: float = 1.0
    label_counts_shared: bool = True
    foreign_proxy: bool = False
    guarded: bool = True

    def teach(
        self,
        ensemble: TeacherEnsemble,
        averages: Mapping[str, State],
        priors: Priors,
        memory: GeneratorState | None,
        server_round: int,
    ) -> Lesson:
        """Teach each architecture's average what all experts know, and what their clients told.

        Parameters
        ----------
        ensemble : TeacherEnsemble
            The experts, and what is known of their clients.
        averages : mapping of architecture to State
        priors : mapping of Team to (classes,) tensor
            As far as they are known.
        memory : GeneratorState or None
            Of the proxy source.
        server_round : int
        """
        voters = ensemble.voters
        nothing = Lesson(
            dict(averages),
            priors,
            memory,
            metrics={"num_teachers": len(voters), "guard_kept_average": 0, "distill_steps": 0},
        )
        students = self._students(ensemble, averages)
        if not students or self.distiller.steps == 0:
            return nothing
        known = self._priors_to_take_out(voters, priors)
        drawn = self.proxy.draw(memory, ensemble.experts(averages[self.server.main], known), server_round)
        inputs = ensemble.inputs(drawn.proxy)
        scores_strata = self.server.task.scores_strata
        if scores_strata and not self.label_counts_shared:
            priors = dict(zip(voters, estimated_log_priors(inputs.expert_logits), strict=True))
        metrics = nothing.metrics | {**drawn.metrics}
        drawn_only = replace(nothing, priors=priors, memory=drawn.memory, metrics=metrics, sheet=drawn.sheet)
        weighing = self.teacher(inputs)
        to_take_out = self._priors_to_take_out(voters, priors)
        asked = weighing.asked
        weighing = weighing.among(asked)
        targets = vote(inputs.logits_of(asked), weighing, to_take_out, self.evidence_weight, scores_strata)
        if not bool(torch.isfinite(targets).all()):
            what = "round %s: the experts' vote is not finite, nobody teaches; see max-norm and robust"
            log(WARNING, what, server_round)
            return drawn_only
        coverage = 1.0
        if self.foreign_proxy:
            coverage = metrics["proxy_coverage"] = ensemble.coverage(ensemble.features(drawn.proxy.x))
        share = self.distiller.student_share * coverage if self.guarded else 1.0
        distiller = replace(self.distiller, student_share=share)
        believed = drawn.proxy.labels
        if believed is None and weighing.evidence is not None:
            believed = weighing.evidence().argmax(dim=1)
        models = dict(averages)
        for model in students:
            models[model], own = self.server.distil(
                distiller, averages[model], drawn.proxy, targets, server_round, model, believed, self.guarded
            )
            counts = {key: metrics[key] + own[key] for key in ("guard_kept_average", "distill_steps")}
            metrics |= own | counts
        voted = self.server.task.predicted_strata(targets)
        count = len(voted) // (1 + len(drawn.proxy.views))  # views count for nothing there
        votes = vote_summary(
            [team.label(self.server.main) for team in voters], weighing.weights[:, :count], voted[:count]
        )
        return replace(drawn_only, models=models, coverage=coverage, votes=votes, metrics=metrics)

    def _students(self, ensemble: TeacherEnsemble, averages: Mapping[str, State]) -> list[str]:
        """Return the architectures that are taught: where there is evidence of strata all, else whom an expert can."""
        experts = ensemble.voters.values()
        if experts and self.evidence_weight and self.server.task.scores_strata:
            return list(averages)
        return [model for model, own in averages.items() if any(not same_model(expert, own) for expert in experts)]

    def _priors_to_take_out(self, voters: Mapping[Team, State], priors: Priors) -> Tensor | None:
        """Return log label shares, (experts, classes), if they are wished and known."""
        if not self.prior_correction or not priors.keys() >= voters.keys():
            return None
        return torch.stack([priors[team] for team in voters])
