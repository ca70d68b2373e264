"""DisUE: clients train, clusters become experts, and the experts teach one universal expert.

"Distilled Universal Expert", arXiv:2506.20285. A round has three phases, each a method of `DisUE`:

- L, `starts`: each client trains from the universal expert, or from a mixture of it and its cluster's expert.
- C, `assign` and the first half of `step`: the clients are grouped, and each cluster's models become its expert.
- U, the second half of `step`: the experts teach the universal expert, by `UniversalDistillation.teach`.

`after_evaluation` then learns, from what clients say of both models, how much of the expert the next mixtures have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Any, Literal, Self

from flwr.common.logger import log
from pydantic import Field
from torch import Tensor

from disue.config import Multiple, Settings
from disue.errors import ConfigError
from disue.models import State, interpolate, same_model
from disue.objective import PLAIN, LocalObjective
from disue.runs.gate import Gate, Knowledge, Space
from disue.signature import Signature
from disue.wire import EvaluateReply
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import Aggregator
from strategies.clustering.assignment import ClusterAssigner, Single
from strategies.clustering.probation import Probation
from strategies.clustering.similarity import SignatureBook
from strategies.distillation.generator import GeneratorState
from strategies.distillation.prototypes import FeatureSpace, Prototypes, believed_counts
from strategies.distillation.proxy import is_foreign
from strategies.distillation.server import FixedProxy
from strategies.distillation.teachers import log_priors_of
from strategies.distillation.universal import UniversalDistillation
from strategies.methods.base import METHODS, Evaluated, Method, MethodState, Step
from strategies.methods.declarations import Needs, Supports, Uses
from strategies.methods.parts import Parts
from strategies.methods.settings import StrategyConfig
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.teams import Team, members_of, renew, teams_of
from strategies.updates import Contribution


class DisUESettings(Settings):
    """Method `disue`."""

    initialisation: Literal["universal", "expert", "blend", "learned"] = Field(
        "learned",
        description="what a client starts a round from; learned: a blend whose share is learnt for each cluster",
    )
    blend: float = Field(
        0.5, ge=0.0, le=1.0, description="share of the own expert when initialisation=blend, and at first when learned"
    )
    expert_memory: float = Field(
        0.5, ge=0.0, lt=1.0, description="share of the past in disue's experts; 0: the last round's updates alone"
    )
    expert_prior: Literal["cluster", "client"] = Field(
        "client",
        description="label prior with which a client of disue uses its expert: as it was trained, or the client's own "
        "in its place; with local-loss=balanced always the client's own",
    )
    prototype_limit: Multiple = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="a client's prototype of a class does not count in disue if it lies farther from what others call "
        "that class than so many times the median distance; 0: all count",
    )
    probation_rounds: int = Field(
        0,
        ge=0,
        le=10**6,
        description="rounds in which a cluster of disue with less than half the usual number of clients must have "
        "taken part before it teaches",
    )
    prior_correction: bool = Field(
        True,
        description="take each cluster's label prior out of its expert's logits; with local-loss=balanced none is in",
    )
    prototypes: Literal["client", "cluster"] = Field(
        "client",
        description="class prototypes that samples are compared with: of each client, or the mean of a cluster's; "
        "there is no more than the latter with privacy=secure",
    )
    prototype_weight: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="weight of the clients' class prototypes in the vote; the experts have 1 together",
    )
    student_share: float = Field(
        0.5, ge=1e-6, le=1.0, description="share of the student in disue's universal expert; the rest is the average"
    )

    @property
    def expert_share(self) -> float:
        """Share of the own expert in what clients start from, as long as none is learnt."""
        return {"universal": 0.0, "expert": 1.0}.get(self.initialisation, self.blend)


@stored
@dataclass(frozen=True)
class DisUEState(MethodState):
    """What DisUE knows after a round. `experts` are running means of ``latest``.

    Attributes
    ----------
    latest : mapping of Team to State
        The mean of the team's updates in the last round in which it was sampled.
    knowledge : mapping of Team to Prototypes
        Of the team's clients.
    spaces : mapping of FeatureSpace to State
        The models that give the features of the spaces that the prototypes are in.
    priors : mapping of Team to (classes,) tensor
        Log label shares of the team's clients, in a task that scores classes; where they are not told, as they were
        last estimated.
    expert_shares : mapping of Team to float
        What was learnt of them.
    coverage : float
        Of the round's proxy set, if that is foreign, and else 1: it makes the shares that are learnt smaller.
    rounds_in : mapping of cluster to int
        In how many rounds a cluster took part; see `Probation`.
    assigner, proxy
        What the `ClusterAssigner` and the `ProxySource` remember.
    warned : bool
        Whether it was said that experts are used with the priors that they were trained with.
    """

    latest: Mapping[Team, State] = field(default_factory=dict)
    knowledge: Mapping[Team, Prototypes] = field(default_factory=dict)
    spaces: Mapping[FeatureSpace, State] = field(default_factory=dict)
    priors: Mapping[Team, Tensor] = field(default_factory=dict)
    expert_shares: Mapping[Team, float] = field(default_factory=dict)
    coverage: float = 1.0
    rounds_in: Mapping[int, int] = field(default_factory=dict)
    assigner: Any = None
    proxy: GeneratorState | None = None
    warned: bool = False


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
    clients_compare : bool (default: False)
        Whether clients are asked if what was distilled fits their data better than the average: of a foreign proxy set
        the server cannot tell.
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
        clients_compare: bool = False,
    ) -> None:
        self.distillation = distillation
        self.server = distillation.server
        super().__init__(self.server.main, objective, aggregator)
        self.assigner = assigner
        self.settings = settings
        self.caps = caps or Caps()
        self.clients_compare = clients_compare
        learns = settings.initialisation == "learned"
        self.needs = replace(self.needs, description=assigner.description, fits=learns)
        self.probation = Probation(settings.probation_rounds)
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
        foreign = is_foreign(config.proxy)
        distillation = UniversalDistillation(
            parts.server,
            parts.proxy(),
            teacher=parts.teacher,
            distiller=parts.distiller(settings.student_share),
            # What was trained with the balanced loss carries no prior that could be taken out.
            prior_correction=settings.prior_correction and config.local_loss != "balanced",
            prototype_weight=settings.prototype_weight,
            label_counts_shared=config.share_label_counts,
            foreign_proxy=foreign,
        )
        return cls(
            parts.assigner(),
            distillation,
            settings,
            parts.objective(),
            parts.aggregator,
            parts.caps,
            clients_compare=foreign and config.privacy != "dp",  # with dp every answer costs
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
            client.name: self.universal(state, client.model) if team is None else mixtures[team]
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
        with round.timed("clustering"):
            state, averages = self._with_experts(state, updates, round)
            sampled = {state.clusters[update.name] for update in updates}
            passed, rounds_in = self.probation.passed(state.rounds_in, state.clusters, sampled)
            voters = {team: expert for team, expert in state.experts.items() if team.cluster in passed}

        # --- phase U: the experts teach --------------------------------------------------------------
        with round.timed("distillation"):
            lesson = self.distillation.teach(
                voters, state.knowledge, state.spaces, averages, state.priors, state.proxy, round.number
            )
        kept = self._fitted_better_by_average(lesson.models, averages, round)
        state = replace(
            state,
            universals={**state.universals, **lesson.models, **{model: averages[model] for model in kept}},
            priors=lesson.priors,
            proxy=lesson.memory,
            coverage=lesson.coverage,
            votes=lesson.votes,
            rounds_in=rounds_in,
        )
        counts = {"guard_kept_average": lesson.metrics["guard_kept_average"] + len(kept)}
        return Step(self._warned(state, round), averages, lesson.metrics | counts, lesson.sheet)

    # --- what clients get, and say -------------------------------------------------------------------

    def universal(self, state: DisUEState, model: str) -> State:
        """Return the universal expert of an architecture."""
        return state.universals[model] if model in state.universals else self.server.initial(model)

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
        numbers: dict[FeatureSpace, int] = {}
        for team in state.experts:
            told = state.knowledge[team]
            if told.space not in numbers:
                numbers[told.space] = len(gate.spaces)
                gate.spaces.append(Space(told.space.model, state.spaces[told.space]))
            gate.experts[team.label(self.main)] = Knowledge(
                team.cluster, told.label_counts, told.points, numbers[told.space], state.priors.get(team)
            )
        return gate

    # --- details -------------------------------------------------------------------------------------

    def _mixture(self, state: DisUEState, team: Team) -> State:
        """Return what the clients of a team start from."""
        universal, share = self.universal(state, team.model), state.expert_shares.get(team, self.settings.expert_share)
        if team not in state.latest or share == 0.0 or same_model(state.latest[team], universal):
            return universal
        return interpolate(universal, state.latest[team], share)

    def _with_experts(
        self, state: DisUEState, updates: Sequence[Contribution], round: Round
    ) -> tuple[DisUEState, dict[str, State]]:
        """Return the state with new experts, and the averages."""
        teams, before = (teams_of(clusters, round.models) for clusters in (state.clusters, round.clusters_before))
        members = members_of(updates, teams)
        fresh, averages = self._averaged(state, updates, members, round)
        counts = self._believed(updates, round)
        told = {
            team: Prototypes.of(
                [counts[u.name] for u in own if u.signature],
                [u.signature for u in own if u.signature],
                FeatureSpace(round.number, team.model),
            )
            for team, own in members.items()
        }
        if self.settings.prototypes == "cluster":
            told = {team: own.pooled() for team, own in told.items()}
        experts = renew(state.experts, self._remembered(state, fresh), teams, before)
        knowledge = renew(state.knowledge, told, teams, before)
        used = {own.space for own in knowledge.values()}
        opened = {FeatureSpace(round.number, team.model): self.universal(state, team.model) for team in members}
        if not self.server.task.scores_strata:
            priors = {}
        elif self.distillation.label_counts_shared:
            priors = {team: log_priors_of(own.pooled_counts) for team, own in knowledge.items()}
        else:
            priors = {team: prior for team, prior in state.priors.items() if team in experts}
        renewed = replace(
            state,
            experts=experts,
            latest=renew(state.latest, fresh, teams, before),
            knowledge=knowledge,
            spaces={space: model for space, model in {**state.spaces, **opened}.items() if space in used},
            priors=priors,
        )
        return renewed, averages

    def _averaged(
        self,
        state: DisUEState,
        updates: Sequence[Contribution],
        members: Mapping[Team, Sequence[Contribution]],
        round: Round,
    ) -> tuple[dict[Team, State], dict[str, State]]:
        """Return each team's model and each architecture's average; its universal expert if none was sampled."""
        fresh: dict[Team, State] = {}
        averages: dict[str, State] = {}
        for model in dict.fromkeys((self.main, *sorted(round.models.values()))):
            own = [update for update in updates if round.models[update.name] == model]
            groups = {team: group for team, group in members.items() if team.model == model}
            if own:
                models, averages[model] = self.aggregator.of_groups(own, groups)
                fresh |= models
            else:
                averages[model] = self.universal(state, model)
        return {team: fresh[team] for team in members}, averages

    def _remembered(self, state: DisUEState, fresh: Mapping[Team, State]) -> dict[Team, State]:
        """Return the running means of the teams' models; of a new team, and of the only one, the last model itself."""
        memory = self.settings.expert_memory
        alone = {team for team in fresh if all(other == team or other.model != team.model for other in fresh)}
        return {
            team: model
            if memory == 0.0 or team in alone or team not in state.experts
            else interpolate(model, state.experts[team], memory)
            for team, model in fresh.items()
        }

    def _believed(self, updates: Sequence[Contribution], round: Round) -> dict[str, Tensor]:
        """Return the clients' label counts, less those of prototypes that lie too far from what others call so.

        A class that a client counts and has no prototype of, as only zeros stand there, it does not have.
        """
        told = {update.name: update.signature for update in updates if update.signature is not None}
        counts = {name: self._counted(signature) for name, signature in told.items()}
        limit = self.settings.prototype_limit
        if not limit:
            return counts
        for model in sorted({round.models[name] for name in told}):
            names = [name for name in told if round.models[name] == model]
            points = [told[name].prototypes for name in names]
            counts |= dict(zip(names, believed_counts([counts[name] for name in names], points, limit), strict=True))
        return counts

    def _counted(self, signature: Signature) -> Tensor:
        """Return the label counts, (classes,), of the classes that it has a prototype of: other than zeros."""
        has_point = (signature.prototypes != 0).any(dim=1)
        shared = self.distillation.label_counts_shared
        return (signature.label_counts if shared else (signature.label_counts > 0).float()) * has_point

    def _fitted_better_by_average(
        self, taught: Mapping[str, State], averages: Mapping[str, State], round: Round
    ) -> list[str]:
        """Return the architectures whose average fits the clients' data better, where clients are asked."""
        unsure = {model: state for model, state in taught.items() if not same_model(state, averages[model])}
        if not self.clients_compare or not unsure:
            return []
        with round.timed("evaluation"):
            kept = sorted(round.fitted_better_by_average(unsure, averages, self.caps, self.server.task.loss_unit))
        for model in kept:
            what = "round %s: the average of %s is kept, it fits the clients' data better than the student does"
            log(WARNING, what, round.number, model)
        return kept

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
