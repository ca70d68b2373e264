"""What a method is: a value in, a value out.

A method says what clients start from, who belongs together, and how their models become experts and the universal
model. It remembers nothing itself. All that it knows from round to round is its state, which is frozen: `Method.step`
takes one and returns another. So a round that fails changes nothing, and a checkpoint is the state.

`fedavgm.py` is a whole method on one page: its paper, its state, its keys, and a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from torch import Tensor

from disue.models import State
from disue.objective import PLAIN, LocalObjective
from disue.registry import Registry
from disue.runs.gate import Gate
from disue.wire import EvaluateReply
from strategies.aggregation.robust import Aggregator, mean
from strategies.clustering.similarity import SignatureBook
from strategies.distillation.teachers import VoteSummary
from strategies.methods.declarations import Needs, Supports, Uses
from strategies.methods.settings import StrategyConfig
from strategies.rounds.registry import Client
from strategies.rounds.round import Round
from strategies.stored import stored
from strategies.teams import Team
from strategies.updates import Contribution

if TYPE_CHECKING:
    from strategies.methods.parts import Parts

METHODS: Registry["type[Method[Any]]"] = Registry("method")
"""Name -> class. Its file is imported in `strategies.methods`."""
Metrics = Mapping[str, float | int | bool]


@stored
@dataclass(frozen=True)
class MethodState:
    """What every method knows after a round.

    Attributes
    ----------
    initial : State
        The model that the first round opened with.
    universals : mapping of architecture to State
        The universal models; before the first round, the initial one.
    clusters : mapping of client to cluster
        Of every client that has one so far.
    experts : mapping of Team to State
        The clusters' own models. A client whose team has none has the universal model.
    votes : VoteSummary or None
        Who taught what in the last round, where experts taught.
    """

    initial: State
    universals: Mapping[str, State]
    clusters: Mapping[str, int] = field(default_factory=dict)
    experts: Mapping[Team, State] = field(default_factory=dict)
    votes: VoteSummary | None = None

    def team_of(self, client: Client) -> Team | None:
        """Return the team of a client that is in a cluster."""
        return Team(self.clusters[client.name], client.model) if client.name in self.clusters else None

    def experts_of(self, model: str) -> dict[int, State]:
        """Return the experts of one architecture, by cluster."""
        return {team.cluster: expert for team, expert in self.experts.items() if team.model == model}


S = TypeVar("S", bound=MethodState)


@dataclass(frozen=True)
class Step(Generic[S]):
    """What a moment of a round comes to.

    Attributes
    ----------
    state : MethodState
        The next state.
    averages : mapping of architecture to State
        The weighted means of the round's models, which reports compare the universal models with.
    metrics : mapping of str to number
        Columns of the round's row in ``metrics.jsonl``.
    sheet : (rows, columns, channels, height, width) tensor, optional
        Generated samples for the eye, pixels in 0..1.
    """

    state: S
    averages: Mapping[str, State] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    sheet: Tensor | None = None


@dataclass(frozen=True)
class Evaluated(Generic[S]):
    """What a method makes of the clients' evaluations: the next state, the evaluations, and metrics."""

    state: S
    evaluations: Mapping[str, EvaluateReply]
    metrics: Metrics = field(default_factory=dict)


class Method(ABC, Generic[S]):
    """A method of federated learning.

    A subclass supplies `step`, and `build` where it has parameters of its own. It overrides `assign` where clients
    differ in kind, and `start`, `candidates` and `expert` where they start from, or use, another model than the
    universal one. What it knows beyond `MethodState` is in a state class of its own, its ``state_type``.

    Parameters
    ----------
    main : str
        The run's own architecture.
    objective : LocalObjective (default: cross-entropy)
        What clients minimise.
    aggregator : Aggregator (default: the weighted mean)
        Makes one model of the clients' models, of all and of each cluster's.

    Attributes
    ----------
    needs : Needs
        What it asks of clients.
    uses : Uses
        What it takes of a run.
    supports : Supports
        What goes with it.
    proxy : (samples, *shape) tensor or None
        The proxy set, where the method has one that stays the same.
    """

    state_type: ClassVar[type[Any]] = MethodState
    uses: ClassVar[Uses] = Uses()
    supports: ClassVar[Supports] = Supports()
    needs: Needs = Needs()
    proxy: Tensor | None = None

    def __init__(self, main: str, objective: LocalObjective = PLAIN, aggregator: Aggregator | None = None) -> None:
        self.main = main
        self.objective = objective
        self.aggregator = aggregator or Aggregator(mean)

    @classmethod
    def check(cls, config: StrategyConfig) -> None:
        """Raise `ConfigError` where the method's keys do not go with others of the run; most methods refuse nothing."""

    @classmethod
    def build(cls, parts: "Parts") -> Self:
        """Return the method as a run's settings have it."""
        return cls(parts.main, objective=parts.objective(), aggregator=parts.aggregator)

    def begin(self, initial: State) -> S:
        """Return the state before the first round, which opens with this model of the run's own architecture."""
        state: S = self.state_type(initial=initial, universals={self.main: initial})
        return state

    def assign(self, state: S, updates: Sequence[Any], round: Round) -> Step[S]:
        """Return a state in which every client that has one so far has its cluster; cluster 2 stays cluster 2.

        Here there is but one.

        Parameters
        ----------
        state : MethodState
        updates : sequence of ClientUpdate
            Of the clients that were sampled, sorted by name; of ClientSketch where the server gets sums only.
        round : Round
        """
        return Step(replace(state, clusters={**state.clusters, **dict.fromkeys((u.name for u in updates), 0)}))

    @abstractmethod
    def step(self, state: S, updates: Sequence[Contribution], round: Round) -> Step[S]:
        """Return the state after a round, with new experts and new universal models.

        Parameters
        ----------
        state : MethodState
            As `assign` returned it.
        updates : sequence of ClientUpdate or GroupSum
            Sorted by name: one for each client, or for each cluster where the server gets sums only.
        round : Round
        """

    def after_evaluation(self, state: S, evaluations: Mapping[str, EvaluateReply], round: Round) -> Evaluated[S]:
        """Return the state after clients evaluated, if any did, and what is to be recorded of it."""
        return Evaluated(state, evaluations)

    # --- what a client gets --------------------------------------------------------------------------

    def universal(self, state: S, model: str) -> State:
        """Return the universal model of an architecture."""
        return state.universals[model]

    def seen_under(self, state: S, model: str) -> State:
        """Return the model of an architecture in whose features clients tell of their data with their updates."""
        return self.universal(state, model)

    def start(self, state: S, client: Client) -> State | None:
        """Return what a client starts its local training from; None: from the candidate that it chooses."""
        return self.universal(state, client.model)

    def starts(self, state: S, clients: Sequence[Client]) -> dict[str, State | None]:
        """Return what each of the round's clients starts from."""
        return {client.name: self.start(state, client) for client in clients}

    def second(self, state: S, client: Client) -> State | None:
        """Return what a client starts a second model from, which it trains beside and sends, too; None: it has none."""
        return None

    def shared(self, state: S) -> State:
        """Return what all clients that have a memory are sent beside their start."""
        return {}

    def candidates(self, state: S) -> Sequence[State]:
        """Return the models of which each client chooses the best for its data; most methods have none."""
        return ()

    def expert(self, state: S, client: Client) -> State | None:
        """Return the client's own expert, or None where that is the universal model."""
        team = state.team_of(client)
        return None if team is None else state.experts.get(team)

    def prior(self, state: S, client: Client) -> Tensor | None:
        """Return the log label shares in the client's expert, where the client should put its own for them."""
        return None

    # --- what a run keeps ----------------------------------------------------------------------------

    def signatures(self, state: S) -> SignatureBook | None:
        """Return what the clients are compared by, in methods that compare them."""
        return None

    def gate(self, state: S, descriptions: Mapping[str, Tensor]) -> Gate:
        """Return what is known of clients and experts, so that new clients can be given an expert."""
        described = [name for name in descriptions if name in state.clusters]
        return Gate(
            signature=self.needs.description,
            descriptions={name: descriptions[name] for name in described},
            clusters={name: state.clusters[name] for name in described},
        )
