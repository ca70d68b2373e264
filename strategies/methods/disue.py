"""DisUE: clients train, clusters become experts, and the experts teach one universal expert.

"Distilled Universal Expert", arXiv:2506.20285.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import WARNING
from typing import ClassVar

import torch
from flwr.app import Message, MetricRecord
from flwr.common.logger import log
from torch import Tensor

from disue.models import State, interpolate
from disue.objective import PLAIN, LocalObjective
from disue.signature import Signature
from strategies.clustering.assignment import ClusterAssigner
from strategies.clustering.probation import Probation
from strategies.clustering.similarity import SignatureBook
from strategies.distillation.distiller import Distiller
from strategies.distillation.ensemble import TeacherEnsemble
from strategies.distillation.prototypes import Prototypes, believed_counts, prototype_vote
from strategies.distillation.server import ProxySource, Server
from strategies.distillation.teachers import TeacherInputs, estimated_log_priors, lesson, log_priors_of, teacher_logits
from strategies.flower import FederatedStrategy
from strategies.rounds.comparing import fitted_better_by_average
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.stats import Participation
from strategies.teams import Team, members_of, renew, teams_of
from strategies.updates import ClientUpdate


class DisUE(FederatedStrategy):
    """Phases C and U.

    Parameters
    ----------
    roster : ClientRegistry
        The clients that are connected.
    participation : Participation
        Who is asked, and how many must answer.
    server : Server
        Models, device and seed.
    proxy : ProxySource
        Gives the proxy set of a round.
    grouping : ClusterAssigner
        Says who belongs together: by a signature and a clusterer, or as any other method does it.
    teacher : callable
        From evidence to each expert's weight per proxy sample.
    distiller : Distiller
        Teaches the universal expert.
    prior_correction : bool (default: True)
        Take each cluster's label prior out of its expert's logits.
    pool_prototypes : bool (default: False)
        Take the mean prototypes of a team's clients for those of each.
    prototype_weight : float (default: 1.0)
        Of the vote of the clients' class prototypes, beside the experts' vote.
    label_counts_shared : bool (default: True)
        Whether the label counts in signatures are counts. If not they are ones and zeros, and the priors are estimated
        on the proxy set.
    expert_share : float (default: 0.0)
        What clients start from: 0 the universal expert (the paper), 1 their own cluster's expert, and in
        between a mixture of both.
    learn_share : bool (default: False)
        ``expert_share`` is for the start only; then each team's share is learnt from how well both models fit its
        clients' data.
    expert_memory : float (default: 0.0)
        Share of the past in an expert: 0 the mean of the round's updates alone (the paper), and above it a running mean
        over the rounds. Clients start from the former.
    client_prior : bool (default: True)
        Where a client uses its expert, its own label prior stands for the cluster's.
    prototype_limit : float (default: 0.0)
        A client's prototype of a class does not count if it lies farther from the median of all prototypes of that
        class than so many times the median distance; 0: all count.
    probation_rounds : int (default: 0)
        See `Probation`.
    foreign_proxy : bool (default: False)
        Whether the proxy set is of other data than the task's, so that its `coverage` has to be looked at.
    clients_compare : bool (default: False)
        Whether clients are asked if what was distilled fits their data better than the average: of a foreign proxy set
        the server cannot tell.
    objective : LocalObjective
        What clients minimise.

    Attributes
    ----------
    averages : dict of architecture to State
        The weighted means of the last round's models; of an architecture that was not sampled, its universal expert.
    latest : dict of Team to State
        The mean of the team's updates in the last round in which it was sampled.
    team_experts : dict of Team to State
        The experts of all architectures, running means of `latest`; `experts` are those of the run's own.
    voters : dict of Team to State
        The experts that teach in this round.
    knowledge : dict of Team to Prototypes
        Of the team's clients.
    expert_shares : dict of Team to float
        What was learnt of them.
    covered : float
        The `coverage` of the round's proxy set, if that is foreign, and else 1: by it the student's share in the
        universal expert is made smaller, and the shares that are learnt.
    priors : dict of Team to (classes,) tensor
        Log label shares of the team's clients; where they are not told, as they were last estimated.
    """

    stateful: ClassVar[tuple[str, ...]] = (
        *("latest", "team_experts", "knowledge", "priors", "expert_shares"),
        *("grouping", "proxy", "probation", "_warned"),
    )
    needs_signature = True

    def __init__(
        self,
        roster: ClientRegistry,
        participation: Participation,
        server: Server,
        proxy: ProxySource,
        grouping: ClusterAssigner,
        teacher: Callable[[TeacherInputs], Tensor],
        distiller: Distiller,
        prior_correction: bool = True,
        prototype_weight: float = 1.0,
        pool_prototypes: bool = False,
        label_counts_shared: bool = True,
        expert_share: float = 0.0,
        learn_share: bool = False,
        expert_memory: float = 0.0,
        client_prior: bool = True,
        prototype_limit: float = 0.0,
        probation_rounds: int = 0,
        foreign_proxy: bool = False,
        clients_compare: bool = False,
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, objective, server.main)
        self.server = server
        self.proxy = proxy
        self.grouping = grouping
        self.needs_description = grouping.description
        self.teacher = teacher
        self.distiller = distiller
        self.prior_correction = prior_correction
        self.prototype_weight = prototype_weight
        self.pool_prototypes = pool_prototypes
        self.label_counts_shared = label_counts_shared
        self.expert_share = expert_share
        self.needs_comparison = learn_share
        self.expert_memory = expert_memory
        self.client_prior = client_prior
        self.prototype_limit = prototype_limit
        self.probation = Probation(probation_rounds)
        self.foreign_proxy = foreign_proxy
        self.clients_compare = clients_compare
        self.averages: dict[str, State] = {}
        self.latest: dict[Team, State] = {}
        self.team_experts: dict[Team, State] = {}
        self.voters: dict[Team, State] = {}
        self.knowledge: dict[Team, Prototypes] = {}
        self.priors: dict[Team, Tensor] = {}
        self.expert_shares: dict[Team, float] = {}
        self.covered = 1.0
        self._mixtures: dict[Team, tuple[State, State, float, State]] = {}
        self._warned = False

    @property
    def signatures(self) -> SignatureBook | None:
        """What the grouping compares clients by."""
        return self.grouping.book

    def universal_for(self, name: str) -> State:
        """Return the universal expert of the client's architecture."""
        return self._universal_of(self.roster.models[name])

    def start_for(self, name: str) -> State:
        """Return the universal expert, or its mixture with what the client's own team last came to."""
        universal = self.universal_for(name)
        if name not in self.clusters or (team := self._team_of(name)) not in self.latest:
            return universal
        latest, share = self.latest[team], self.expert_shares.get(team, self.expert_share)
        return universal if share == 0.0 or latest is universal else self._mixture(team, universal, latest, share)

    def expert_for(self, name: str) -> State | None:
        """Return the expert of the client's cluster and architecture, or None where it has none yet."""
        return self.team_experts.get(self._team_of(name)) if name in self.clusters else None

    def prior_of(self, name: str) -> Tensor | None:
        """Return the label prior of the client's expert, if clients are to put their own for it and it is known."""
        if not self.client_prior or self.objective.local_loss == "balanced" or name not in self.clusters:
            return None
        return self.priors.get(self._team_of(name))

    def experts_of(self, model: str) -> dict[int, State]:
        """Return the experts of one architecture, by cluster."""
        return {team.cluster: expert for team, expert in self.team_experts.items() if team.model == model}

    def candidates(self) -> Sequence[State]:
        """Return the grouping's candidates."""
        return self.grouping.candidates(self.experts)

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the grouping's clusters."""
        clusters = self.grouping.group(updates, self.descriptions)
        self.outcome.extra |= self.grouping.metrics
        return clusters

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Average each team into its expert, and distil the experts."""
        with self.outcome.timed("clustering"):
            self._update_experts(updates, self.clusters_before)
            sampled = {self.clusters[update.name] for update in updates}
            passed = self.probation.passed(self.clusters, sampled)
            self.voters = {team: expert for team, expert in self.team_experts.items() if team.cluster in passed}
        with self.outcome.timed("distillation"):
            taught = self._distil()
        self.universals |= self._confirmed(server_round, taught)
        self._warn_of_unknown_priors()
        return self.universal

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep each client's own numbers, and learn from them where the teams' clients should start."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if self.needs_comparison:
            self._learn_shares()
        return metrics

    # --- phase L: where clients start --------------------------------------------------------------

    def _team_of(self, name: str) -> Team:
        return Team(self.clusters[name], self.roster.models[name])

    def _mixture(self, team: Team, universal: State, latest: State, share: float) -> State:
        """Return the mixture that all clients of a team start from, which is one object."""
        made = self._mixtures.get(team)
        if made is None or made[0] is not universal or made[1] is not latest or made[2] != share:
            made = self._mixtures[team] = universal, latest, share, interpolate(universal, latest, share)
        return made[3]

    def _learn_shares(self) -> None:
        """Set each team's share to γ L_u² / (L_u² + L_e²), with the summed losses of its clients that were evaluated,
        bounded by each other (`Caps.fits`).

        Without γ, half where both fit alike; the worse the universal expert fits what its expert fits well, the nearer
        to one. γ is the proxy set's coverage: models that start apart are of use as one only if they can be reconciled.
        """
        guessing = math.log(len(self.universal["head.bias"]))
        caps, fits = self.limits.caps, dict[Team, dict[str, tuple[float, float]]]()
        for name, reply in self.outcome.evaluations.items():
            if reply.universal_fit is not None and reply.expert_fit is not None and name in self.clusters:
                fits.setdefault(self._team_of(name), {})[name] = reply.universal_fit, reply.expert_fit
        for team, own in fits.items():
            universal, expert = (
                sum(caps.fits({name: pair[i] for name, pair in own.items()}, guessing, what).values()) ** 2
                for i, what in enumerate(("universal-fit", "expert-fit"))
            )
            self.expert_shares[team] = self.covered * universal / max(universal + expert, 1e-12)
        shares = [self.expert_shares.get(team, self.expert_share) for team in self.team_experts]
        self.outcome.extra["expert_share"] = sum(shares) / len(shares)

    # --- phase C: clustering and aggregation -------------------------------------------------------

    def _universal_of(self, model: str) -> State:
        if model not in self.universals:
            self.universals[model] = self.server.initial(model)
        return self.universals[model]

    def _update_experts(self, updates: Sequence[ClientUpdate], before: dict[str, int]) -> None:
        teams, teams_before = (teams_of(clusters, self.roster.models) for clusters in (self.clusters, before))
        members = members_of(updates, teams)
        counts = self._believed(updates)
        fresh, self.averages = self._aggregated(updates, members)
        self.average = self.averages[self.model]
        told = {
            team: Prototypes.of(
                [counts[u.name] for u in own if u.signature],
                [u.signature for u in own if u.signature],
                self._universal_of(team.model),
            )
            for team, own in members.items()
        }
        if self.pool_prototypes:
            told = {team: own.pooled() for team, own in told.items()}
        experts = {team: self._remembering(team, state) for team, state in fresh.items()}
        self.latest = renew(self.latest, fresh, teams, teams_before)
        self.team_experts = renew(self.team_experts, experts, teams, teams_before)
        self.knowledge = renew(self.knowledge, told, teams, teams_before)
        self.priors = {team: prior for team, prior in self.priors.items() if team in self.team_experts}
        if self.label_counts_shared:
            self.priors = {team: log_priors_of(own.pooled_counts) for team, own in self.knowledge.items()}
        self.experts = self.experts_of(self.model)

    def _aggregated(
        self, updates: Sequence[ClientUpdate], members: Mapping[Team, Sequence[ClientUpdate]]
    ) -> tuple[dict[Team, State], dict[str, State]]:
        """Return each team's model and each architecture's average; its universal expert if none was sampled."""
        fresh: dict[Team, State] = {}
        averages: dict[str, State] = {}
        for model in dict.fromkeys((self.model, *sorted(self.roster.models.values()))):
            own = [update for update in updates if self.roster.models[update.name] == model]
            groups = {team: group for team, group in members.items() if team.model == model}
            models, averages[model] = self.aggregator.of_groups(own, groups) if own else ({}, self._universal_of(model))
            fresh |= models
        return {team: fresh[team] for team in members}, averages

    def _believed(self, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
        """Return the clients' label counts, less those of prototypes that lie too far from what others call so.

        A class that a client counts and has no prototype of, as only zeros stand there, it does not have.
        """
        told = {update.name: update.signature for update in updates if update.signature is not None}
        counts = {name: self._counted(signature) for name, signature in told.items()}
        if not self.prototype_limit:
            return counts
        for model in sorted({self.roster.models[name] for name in told}):
            names = [name for name in told if self.roster.models[name] == model]
            points = [told[name].prototypes for name in names]
            believed = believed_counts([counts[name] for name in names], points, self.prototype_limit)
            counts |= dict(zip(names, believed, strict=True))
        return counts

    def _counted(self, signature: Signature) -> Tensor:
        """Return the label counts, (classes,), of the classes that it has a prototype of: other than zeros."""
        has_point = (signature.prototypes != 0).any(dim=1)
        counts = signature.label_counts if self.label_counts_shared else (signature.label_counts > 0).float()
        return counts * has_point

    def _remembering(self, team: Team, fresh: State) -> State:
        """Return the running mean of a team's models; of a new team, and of the only one, the last model itself."""
        if team not in self.team_experts or fresh is self.averages[team.model] or self.expert_memory == 0.0:
            return fresh
        return interpolate(fresh, self.team_experts[team], self.expert_memory)

    # --- phase U: universal distillation -----------------------------------------------------------

    def _distil(self) -> dict[str, State]:
        """Teach each architecture's average what all experts know; one that is the only expert learns nothing."""
        self.lesson, self.covered = None, 1.0
        self.outcome.extra |= {"num_teachers": len(self.voters), "guard_kept_average": 0, "distill_steps": 0}
        experts = self.voters.values()
        students = [m for m, average in self.averages.items() if any(expert is not average for expert in experts)]
        if not students or self.distiller.steps == 0:
            return self.averages
        panel = TeacherEnsemble(self.server, self.voters, self.knowledge)
        proxy = self.proxy.draw(panel.experts(self.average, self._priors_to_take_out()), self.outcome)
        features = panel.features(proxy.x)
        evidence = panel.evidence(proxy, features)
        targets = self._vote(evidence)
        if targets is None:
            return self.averages
        if self.foreign_proxy:
            self.covered = self.outcome.extra["proxy_coverage"] = panel.coverage(features)
        distiller = replace(self.distiller, student_share=self.distiller.student_share * self.covered)
        believed = prototype_vote(evidence.distances).argmax(dim=1) if proxy.labels is None else proxy.labels
        taught = {
            model: self.server.distil(distiller, self.averages[model], proxy.x, targets, self.outcome, model, believed)
            for model in students
        }
        return self.averages | taught

    def _confirmed(self, server_round: int, taught: dict[str, State]) -> dict[str, State]:
        """Return what was taught or, where clients are asked, the average if it fits their data better."""
        unsure = {model: state for model, state in taught.items() if state is not self.averages[model]}
        if not self.clients_compare or not unsure:
            return taught
        assert self._grid is not None
        grid = self._grid
        with self.outcome.timed("evaluation"):
            kept = fitted_better_by_average(
                lambda messages: self.dialogue.ask(grid, messages, self.outcome, "evaluation"),
                self.roster.sample(self.participation.fraction_evaluate, "evaluate", server_round),
                server_round,
                unsure,
                self.averages,
                self.objective,
                self.roster.task,
                self.limits.caps,
            )
        for model in sorted(kept):
            what = "round %s: the average of %s is kept, it fits the clients' data better than the student does"
            log(WARNING, what, server_round, model)
        self.outcome.extra["guard_kept_average"] += len(kept)
        return taught | {model: self.averages[model] for model in kept}

    def _vote(self, evidence: TeacherInputs) -> Tensor | None:
        """Return the vote, (samples, classes), and keep who taught what; priors that nobody told are estimated.

        None: it has no numbers, as where an expert's parameters are beyond all measure. Nobody teaches then.
        """
        if not self.label_counts_shared:
            self.priors = dict(zip(self.voters, estimated_log_priors(evidence.expert_logits), strict=True))
        weights = self.teacher(evidence)
        targets = teacher_logits(evidence, weights, self._priors_to_take_out(), self.prototype_weight)
        if not bool(torch.isfinite(targets).all()):
            what = "round %s: the experts' vote is not finite, nobody teaches; see max-norm and robust"
            log(WARNING, what, self.outcome.server_round)
            return None
        self.lesson = lesson([team.label(self.model) for team in self.voters], weights, targets)
        return targets

    def _warn_of_unknown_priors(self) -> None:
        """Say once that experts are used as they were trained, where nobody told a prior and none was estimated."""
        wanted = self.client_prior and self.objective.local_loss != "balanced"
        if wanted and not self._warned and not self.priors.keys() >= self.team_experts.keys():
            what = (
                "round %s: the clusters' label shares are neither told nor estimated; clients use experts as they are"
            )
            log(WARNING, what, self.outcome.server_round)
            self._warned = True

    def _priors_to_take_out(self) -> Tensor | None:
        """Return log label shares, (experts, classes), if they are wished and known."""
        if not self.prior_correction or not self.priors.keys() >= self.voters.keys():
            return None
        return torch.stack([self.priors[team] for team in self.voters])
