"""DisUE: clients train, clusters become experts, and the experts teach one universal expert.

"Distilled Universal Expert", arXiv:2506.20285. A round has three phases, each a method of `DisUE`:

- L, `starts`: each client trains from the universal expert, or from a mixture of it and its cluster's expert.
- C, `assign` and the first half of `step`: the clients are grouped, and each cluster's models become its expert.
- U, the second half of `step`: the experts teach the universal expert, by `UniversalDistillation.teach`.

`after_evaluation` then learns, from what clients say of both models, how much of the expert the next mixtures have.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from logging import WARNING
from typing import Any, Self

import torch
from flwr.common.logger import log
from torch import Tensor

from disue.errors import ConfigError
from disue.models import State, interpolate, same_model
from disue.objective import PLAIN, LocalObjective
from disue.runs.gate import Gate
from disue.signature import Signature
from disue.wire import EvaluateReply
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import Aggregator
from strategies.aggregation.steps import RunningMean, stepped
from strategies.clustering.assignment import ClusterAssigner, Single
from strategies.clustering.probation import Probation
from strategies.clustering.similarity import SignatureBook
from strategies.distillation.belief import believed
from strategies.distillation.calibration import Calibrator
from strategies.distillation.early import EarlyFeatures
from strategies.distillation.ensemble import TeacherEnsemble
from strategies.distillation.heads import Heads
from strategies.distillation.knowledge import Knowledge
from strategies.distillation.proxy import is_foreign
from strategies.distillation.server import FixedProxy
from strategies.distillation.teachers import TEACHERS, log_priors_of
from strategies.distillation.universal import Lesson, UniversalDistillation
from strategies.methods.base import METHODS, Evaluated, Method, Step
from strategies.methods.declarations import Needs, Supports, Uses
from strategies.methods.disue_settings import ClientsTell, DisUESettings
from strategies.methods.disue_state import DisUEState
from strategies.methods.parts import Parts
from strategies.methods.settings import StrategyConfig
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.teams import Team, members_of, renew, teams_of
from strategies.updates import Contribution, GroupSum

LAST = 0
"""Stands for the round where what is known is kept after the last one."""
ALL = -1
"""Stands for all clusters."""


@METHODS.register("disue", DisUESettings)
class DisUE(Method[DisUEState]):
    """The three phases.

    Parameters
    ----------
    assigner : ClusterAssigner
        Says who belongs together: by a signature and a clusterer, or as any other method does it.
    distillation : UniversalDistillation
        Makes the universal experts of the experts and the averages.
    settings : DisUESettings
        What phases L and C do; what phase U does is in ``distillation``.
    objective, aggregator
        See `Method`.
    caps : Caps
        Bounds the losses that shares are learnt from.
    clients_tell : ClientsTell
    """

    uses = Uses(proxies=("holdout", "dataset", "path", "generator"), assigner=True, cluster_priors=True)
    supports = Supports(sums=True, mixed_models=True)
    needs = Needs(prototypes=True)

    state_type = DisUEState

    def __init__(
        self,
        assigner: ClusterAssigner[Any],
        distillation: UniversalDistillation,
        settings: DisUESettings,
        objective: LocalObjective = PLAIN,
        aggregator: Aggregator | None = None,
        caps: Caps | None = None,
        clients_tell: ClientsTell | None = None,
    ) -> None:
        self.distillation = distillation
        self.server = distillation.server
        super().__init__(self.server.main, objective, aggregator)
        self.assigner = assigner
        self.settings = settings
        self.caps = caps or Caps()
        self.clients_tell = clients_tell or ClientsTell()
        learns, varies = settings.initialisation == "learned", self.clients_tell.covariance
        self.early = EarlyFeatures.of(self.server, settings.early_features if self.clients_tell.early else 0)
        self.needs = replace(
            self.needs,
            covariance=varies,
            description=assigner.description,
            fits=learns,
            digest=self.early.number > 0,
        )
        self.probation = Probation(settings.probation_rounds)
        self.heads = Heads(self.server, Calibrator(settings))
        self.proxy = distillation.proxy.x if isinstance(distillation.proxy, FixedProxy) else None

    @classmethod
    def check(cls, config: StrategyConfig) -> None:
        """Refuse a limit on each client's prototypes where the server gets their sums."""
        limit = DisUESettings.of(config).prototype_limit
        if config.privacy == "secure" and limit:
            raise ConfigError(f"prototype-limit: got {limit!r}; the server gets sums only with privacy=secure, use 0")

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """Return the method as a run's settings have it."""
        config, settings = parts.config, DisUESettings.of(parts.config)
        tell = ClientsTell(
            comparison=config.privacy != "dp",  # there every answer costs
            covariance=config.privacy != "dp",
            early=config.privacy == "plain"
            and config.share_label_counts
            and TEACHERS.looks_at_densities(config.teacher, classes_known=config.proxy == "generator"),
        )
        distillation = UniversalDistillation(
            parts.server,
            parts.proxy(),
            teacher=parts.teacher,
            distiller=parts.distiller(settings.student_share),
            # What was trained with the balanced loss carries no prior that could be taken out.
            prior_correction=settings.prior_correction and config.local_loss != "balanced",
            evidence_weight=settings.prototype_weight,
            label_counts_shared=config.share_label_counts,
            foreign_proxy=is_foreign(config.proxy),
            guarded=not tell.comparison,
        )
        return cls(
            parts.assigner(),
            distillation,
            settings,
            parts.objective(),
            parts.aggregator,
            parts.caps,
            tell,
        )

    def begin(self, initial: State) -> DisUEState:
        """Return the state before the first round."""
        return replace(super().begin(initial), assigner=self.assigner.begin())

    # --- phase L: clients train ----------------------------------------------------------------------

    def starts(self, state: DisUEState, clients: Sequence[Client]) -> dict[str, State | None]:
        """Return, for each client, the universal expert or its mixture with what its team last came to."""
        teams = {client.name: state.team_of(client) for client in clients}
        mixtures = {team: self._mixture(state, team) for team in set(teams.values()) if team is not None}
        return {
            client.name: self.seen_under(state, client.model) if team is None else mixtures[team]
            for client in clients
            for team in (teams[client.name],)
        }

    def candidates(self, state: DisUEState) -> Sequence[State]:
        """Return the assigner's candidates."""
        return self.assigner.candidates(state.assigner, state.experts_of(self.main))

    # --- phase C: clusters become experts ------------------------------------------------------------

    def assign(self, state: DisUEState, updates: Sequence[Single], round: Round) -> Step[DisUEState]:
        """Return the assigner's clusters."""
        experts = state.experts_of(self.main)
        found = self.assigner.assign(state.assigner, updates, round.descriptions, round.groups, experts)
        return Step(replace(state, clusters=found.clusters, assigner=found.memory), metrics=found.metrics)

    def step(self, state: DisUEState, updates: Sequence[Contribution], round: Round) -> Step[DisUEState]:
        """Average each team into its expert, and distil the experts."""
        early = self.early.updated(state.early, updates, state.clusters, self.caps, round.early, round.timed)
        state = replace(state, early=early)
        with round.timed("clustering"):
            state, averages = self._with_experts(state, updates, round)
            sampled = {state.clusters[update.name] for update in updates}
            passed, rounds_in = self.probation.passed(state.rounds_in, state.clusters, sampled)

        # --- phase U: the experts teach --------------------------------------------------------------
        with round.timed("distillation"):
            state = self._with_calibrated_experts(state, updates, round)
            ensemble = self.ensemble(state, passed)
            lesson = self.distillation.teach(ensemble, averages, state.priors, state.proxy, round.number)
        mixed, found = self._mixed(lesson, averages, round)
        with round.timed("distillation"):
            means = self._over_rounds(state, mixed, updates, round)
            share = self.settings.head_share * lesson.coverage
            universals = {
                model: self._calibrated(state, {ALL: mean.state}, model, round, share, passed).get(ALL, mean.state)
                for model, mean in means.items()
            }
        state = replace(
            state,
            universals={**state.universals, **universals},
            plain={**state.plain, **mixed},
            means={**state.means, **means},
            priors=lesson.priors,
            proxy=lesson.memory,
            coverage=lesson.coverage,
            votes=lesson.votes,
            rounds_in=rounds_in,
        )
        return Step(self._warned(state, round), averages, lesson.metrics | found, lesson.sheet)

    # --- what clients get, and say -------------------------------------------------------------------

    def universal(self, state: DisUEState, model: str) -> State:
        """Return the universal expert of an architecture."""
        return state.universals[model] if model in state.universals else self.server.initial(model)

    def seen_under(self, state: DisUEState, model: str) -> State:
        """Return the universal expert of an architecture, before its head was calibrated."""
        return state.plain[model] if model in state.plain else self.universal(state, model)

    def prior(self, state: DisUEState, client: Client) -> Tensor | None:
        """Return the label prior of the client's expert, if clients are to put their own for it and it is known."""
        team = state.team_of(client)
        return state.priors.get(team) if team is not None and self._uses_client_priors else None

    def after_evaluation(
        self, state: DisUEState, evaluations: Mapping[str, EvaluateReply], round: Round
    ) -> Evaluated[DisUEState]:
        """Set each team's share to γ L_u² / (L_u² + L_e²), with the summed losses of its clients that were evaluated,
        bounded by each other (`Caps.fits`).

        Without γ, half where both fit alike; the worse the universal expert fits what its expert fits well, the nearer
        to one. γ is the proxy set's coverage: models that start apart are of use as one only if they can be reconciled.
        """
        if not self.needs.fits:
            return Evaluated(state, evaluations)
        loss_unit = self.server.task.loss_unit
        fits: dict[Team, dict[str, tuple[float, float]]] = {}
        for name, reply in evaluations.items():
            if reply.universal_fit is not None and reply.expert_fit is not None and name in state.clusters:
                team = Team(state.clusters[name], round.models[name])
                fits.setdefault(team, {})[name] = reply.universal_fit, reply.expert_fit
        learnt: dict[Team, float] = {}
        for team, own in fits.items():
            universal, expert = (
                sum(self.caps.fits({name: pair[i] for name, pair in own.items()}, loss_unit, what).values()) ** 2
                for i, what in enumerate(("universal-fit", "expert-fit"))
            )
            learnt[team] = state.coverage * universal / max(universal + expert, 1e-12)
        known = {**state.expert_shares, **learnt}
        shares = [known.get(team, self.settings.expert_share) for team in state.experts]
        metrics = {"expert_share": sum(shares) / len(shares)}
        return Evaluated(replace(state, expert_shares=known), evaluations, metrics)

    # --- what a run keeps ----------------------------------------------------------------------------

    def signatures(self, state: DisUEState) -> SignatureBook | None:
        """Return what the assigner compares clients by."""
        return self.assigner.book(state.assigner)

    def gate(self, state: DisUEState, descriptions: Mapping[str, Tensor]) -> Gate:
        """Return what is known of clients and experts, the prototypes of the experts' clients included."""
        gate = super().gate(state, descriptions)
        ensemble = self.ensemble(state, {team.cluster for team in state.experts}, every=True)
        known = ensemble.gate(self.distillation.proxy.inputs(state.proxy, LAST), state.priors)
        return replace(gate, spaces=known.spaces, experts=known.experts)

    def ensemble(self, state: DisUEState, clusters: Collection[int], every: bool = False) -> TeacherEnsemble:
        """Return the experts of these clusters, with what is known of their clients.

        Those of a few clusters of which no early features are known are left out, so that the others are compared by
        these. With ``every`` none is: then early features count if they are known of all.
        """
        told: dict[Team, list[Signature]] = {}
        for name, signature in state.knowledge.told.items():
            told.setdefault(Team(state.clusters[name], state.knowledge.models[name]), []).append(signature)
        voters = {t: expert for t, expert in state.experts.items() if t.cluster in clusters and t in told}
        pooled, limit = self.settings.prototypes == "cluster", self.settings.prototype_limit
        early = None
        if self.early.number and voters:
            teams, early = state.early.discriminant(list(voters), state.clusters, self.caps, limit)
            silent = sorted({team.cluster for team in voters} - {team.cluster for team in teams})
            if early is None or (silent and every):
                early = None
                log(WARNING, "too little is known, or believed, of early features; the universal expert's count")
            elif silent:
                what = "of cluster %s no early features are known, or believed; it does not teach"
                log(WARNING, what, ", ".join(map(str, silent)))
                voters = {team: voters[team] for team in teams}
        return TeacherEnsemble(self.server, voters, told, state.knowledge, pooled, early)

    # --- details -------------------------------------------------------------------------------------

    def _mixture(self, state: DisUEState, team: Team) -> State:
        """Return what the clients of a team start from."""
        universal, share = self.seen_under(state, team.model), state.expert_shares.get(team, self.settings.expert_share)
        if team not in state.latest or share == 0.0 or same_model(state.latest[team], universal):
            return universal
        return interpolate(universal, state.latest[team], share)

    def _with_experts(
        self, state: DisUEState, updates: Sequence[Contribution], round: Round
    ) -> tuple[DisUEState, dict[str, State]]:
        """Return the state with new experts, and the averages."""
        teams, before = (teams_of(clusters, round.models) for clusters in (state.clusters, round.clusters_before))
        members = members_of(updates, teams)
        fresh, averages, velocity = self._averaged(state, updates, members, round)
        told = self._believed(updates, round)
        if not self.server.task.scores_strata:
            priors = {}
        elif self.distillation.label_counts_shared:
            counts = {team: [told[u.name].label_counts for u in own if u.name in told] for team, own in members.items()}
            counted = {team: log_priors_of(torch.stack(own).sum(dim=0)) for team, own in counts.items()}
            priors = renew(state.priors, counted, teams, before)
        else:
            priors = {team: prior for team, prior in state.priors.items() if team in teams.values()}
        renewed = replace(
            state,
            experts=renew(state.experts, self._remembered(state, fresh, set(teams.values())), teams, before),
            latest=renew(state.latest, fresh, teams, before),
            velocity=velocity,
            knowledge=self._known(state, updates, told, round),
            priors=priors,
        )
        return renewed, averages

    def _with_calibrated_experts(self, state: DisUEState, updates: Sequence[Contribution], round: Round) -> DisUEState:
        """Return the state with heads calibrated on what their clients told; no label prior is in such a head.

        With ``expert-prior=cluster`` experts are used as they were trained. A proxy set that covers little tells little
        of how features move: as far as it did in the last round heads are calibrated.
        """
        if self.settings.expert_prior == "cluster" and self.objective.local_loss != "balanced":
            return state
        fresh = sorted({Team(state.clusters[update.name], round.models[update.name]) for update in updates})
        calibrated: dict[Team, State] = {}
        for model in sorted({team.model for team in fresh}):
            teams = [team for team in fresh if team.model == model]
            clusters = {team.cluster: state.experts[team] for team in teams}
            found = self._calibrated(state, clusters, model, round, state.coverage)
            calibrated |= {team: found[team.cluster] for team in teams if team.cluster in found}
        num_strata = self.server.task.num_strata
        uniform = {team: torch.full((num_strata,), -math.log(num_strata)) for team in calibrated}
        priors = {**state.priors, **uniform}
        return replace(state, experts={**state.experts, **calibrated}, priors=priors)

    def _calibrated(
        self,
        state: DisUEState,
        models: Mapping[int, State],
        model: str,
        round: Round,
        share: float,
        trusted: Collection[int] = (),
    ) -> dict[int, State]:
        """Return models of one architecture, each of a cluster or of `ALL`, with so large a share of calibrated heads.

        See `Heads`. What the cluster's clients told counts, of `ALL` those of the trusted clusters.
        """
        names = [name for name, own in state.knowledge.models.items() if own == model]
        groups = {cluster: set(trusted) if cluster == ALL else {cluster} for cluster in models}
        clients = {cluster: [n for n in names if state.clusters[n] in own] for cluster, own in groups.items()}
        inputs = self.distillation.proxy.inputs(state.proxy, round.number)
        return self.heads.calibrated(state.knowledge, models, model, clients, inputs, round.number, share)

    def _known(
        self, state: DisUEState, updates: Sequence[Contribution], told: Mapping[str, Signature], round: Round
    ) -> Knowledge:
        """Return what clients told, in the features of the universal experts that opened the round.

        What a client told now stands for what it told before. A sum stands for what its cluster told before, and with
        ``prototypes=cluster`` so does what several told, as in a sum. What a client told of other data than it has now
        is left out, and so is what it told of another architecture: that is in no space that there is. Of a sum nobody
        can take one's part out: it is left out, too, if one of its clients has other data, or belongs elsewhere now.
        """
        together = self.settings.prototypes == "cluster"
        sums = {state.clusters[update.name] for update in updates if together or isinstance(update, GroupSum)}

        def holds(name: str, model: str) -> bool:
            clients = state.knowledge.behind(name)
            clusters = {state.clusters.get(client, -1) for client in clients}
            same = all(round.models[client] == model and client not in round.changed for client in clients)
            return name not in told and len(clusters) == 1 and not clusters & {-1, *sums} and same

        over = [name for name, model in state.knowledge.models.items() if not holds(name, model)]
        kept = state.knowledge.less(over)
        spaces = {model: self.seen_under(state, model) for model in {self.main, *round.models.values()}}
        inputs = self.distillation.proxy.inputs(state.proxy, round.number) if kept.told else None
        moved = kept.moved(self.server, spaces, inputs)
        return moved.with_told(told, round.models, {update.name: update.clients for update in updates})

    def _averaged(
        self,
        state: DisUEState,
        updates: Sequence[Contribution],
        members: Mapping[Team, Sequence[Contribution]],
        round: Round,
    ) -> tuple[dict[Team, State], dict[str, State], dict[str, State]]:
        """Return each team's model, each architecture's average (`stepped`), and the step to it.

        The average is the universal expert, if no client of the architecture was sampled.
        """
        fresh: dict[Team, State] = {}
        averages: dict[str, State] = {}
        velocity = dict(state.velocity)
        for model in dict.fromkeys((self.main, *sorted(round.models.values()))):
            averages[model] = universal = self.seen_under(state, model)
            if own := [update for update in updates if round.models[update.name] == model]:
                groups = {team: group for team, group in members.items() if team.model == model}
                models, averages[model], velocity[model] = stepped(
                    self.aggregator, own, groups, universal, velocity.get(model), self.settings.universal_momentum
                )
                fresh |= models
        return {team: fresh[team] for team in members}, averages, velocity

    def _remembered(self, state: DisUEState, fresh: Mapping[Team, State], teams: Collection[Team]) -> dict[Team, State]:
        """Return the running means of the teams' models; of a new team, and of the only one, the last model itself.

        ``teams``: all there are, those of which no client was sampled included.
        """
        memory = self.settings.expert_memory
        alone = {team for team in fresh if all(other == team or other.model != team.model for other in teams)}
        return {
            team: model
            if memory == 0.0 or team in alone or team not in state.experts
            else interpolate(model, state.experts[team], memory)
            for team, model in fresh.items()
        }

    def _believed(self, updates: Sequence[Contribution], round: Round) -> dict[str, Signature]:
        """Return what clients told, as far as it is `believed`; of each architecture by itself."""
        told = {update.name: update.signature for update in updates if update.signature is not None}
        limit, counts_told = self.settings.prototype_limit, self.distillation.label_counts_shared
        left: dict[str, Signature] = {}
        for model in sorted({round.models[name] for name in told}):
            own = {name: signature for name, signature in told.items() if round.models[name] == model}
            left |= believed(own, self.caps, limit, counts_told)
        return {name: left[name] for name in told if name in left}

    def _mixed(
        self, lesson: Lesson, averages: Mapping[str, State], round: Round
    ) -> tuple[dict[str, State], dict[str, float]]:
        """Return the universal experts: mixtures of students and averages as clients like them best, if they are asked.

        Without an answer it is the settings' mixture, as far as the proxy set covers the clients' data.
        """
        students = {model: state for model, state in lesson.models.items() if not same_model(state, averages[model])}
        if not self.clients_tell.comparison or not students:
            return lesson.models, {}
        with round.timed("evaluation"):
            told = round.best_shares(students, averages, self.caps, self.server.task.loss_unit)
        shares = {model: told.get(model, self.settings.student_share * lesson.coverage) for model in students}
        mixed = {model: interpolate(averages[model], own, shares[model]) for model, own in students.items()}
        kept = lesson.metrics["guard_kept_average"] + sum(share == 0.0 for share in shares.values())
        found = {"guard_kept_average": kept, "student_share": sum(shares.values()) / len(shares)}
        return lesson.models | mixed, found

    def _over_rounds(
        self, state: DisUEState, latest: Mapping[str, State], updates: Sequence[Contribution], round: Round
    ) -> dict[str, RunningMean]:
        """Return the universal experts' running means over rounds; ``universal-mean=false``: of the latest alone.

        The latest counts for at least the share of clients that took part: with all of them, alone.
        """
        took_part = sum(len(update.clients) for update in updates) / max(len(round.groups), 1)
        least = took_part if self.settings.universal_mean else 1.0
        return {
            model: state.means[model].followed_by(own, least) if model in state.means else RunningMean(own)
            for model, own in latest.items()
        }

    @property
    def _uses_client_priors(self) -> bool:
        has_priors = self.server.task.scores_strata and self.objective.local_loss != "balanced"
        return self.settings.expert_prior == "client" and has_priors

    def _warned(self, state: DisUEState, round: Round) -> DisUEState:
        """Say once that experts are used as they were trained, where nobody told a prior and none was estimated."""
        if state.warned or not self._uses_client_priors or state.priors.keys() >= state.experts.keys():
            return state
        what = "round %s: the clusters' label shares are neither told nor estimated; clients use experts as they are"
        log(WARNING, what, round.number)
        return replace(state, warned=True)
