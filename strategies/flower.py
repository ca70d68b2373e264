"""What all methods share: the moments of a round, who takes part, and what happens when clients fail."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from disue.errors import FederationError, TooFewUpdates, WireError
from disue.models import State
from disue.naming import by_name
from disue.objective import PLAIN, LocalObjective
from disue.privacy.secagg import vector_sizes
from disue.wire import (
    EvaluateReply,
    EvaluateRequest,
    Records,
    TrainReply,
    TrainRequest,
    error_reason,
    message_bytes,
)
from strategies.aggregation.limits import Lengths, Limits
from strategies.aggregation.robust import Aggregator, mean
from strategies.aggregation.store import UpdateStore
from strategies.clustering.similarity import SignatureBook
from strategies.distillation.teachers import VoteSummary
from strategies.rounds.descriptions import Descriptions
from strategies.rounds.registry import Client, ClientRegistry
from strategies.rounds.replies import ReplyCollector
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.state import Snapshot
from strategies.rounds.stats import Participation, RoundStats
from strategies.updates import ClientUpdate


class FederatedStrategy(Strategy):
    """A Flower strategy over stable client names.

    A method overrides `aggregate` and, where clients differ, `group`, `start_for`, `candidates`, `expert_for` and, if
    they differ in their architectures, `universal_for`. Everything it sends and receives is a typed record
    (`disue.wire`). What it remembers from round to round it names in ``stateful``, and so does every part of it: those
    attributes are what a checkpoint holds, beside those that its base classes name.

    Parameters
    ----------
    roster : ClientRegistry
        The clients that are connected.
    participation : Participation
        Who is asked, and how many must answer.
    objective : LocalObjective
        What clients minimise.
    model : str (default: "")
        The run's own architecture, in methods whose clients may have others.

    Attributes
    ----------
    initial : State
        The model that the first round opened with.
    universals : dict of architecture to State
        The universal models; before the first round, the initial ones.
    average : State
        The weighted mean of the last round's models, of those with the run's own architecture.
    clusters : dict of client to cluster
    clusters_before : dict of client to cluster
        Those of the round before, while a round's updates are aggregated.
    experts : dict of cluster to State
        Those of the run's own architecture; `experts_of` has the others.
    dialogue : ReplyCollector
        What the clients were asked last, and what went wrong with them in this round.
    descriptions : Descriptions
        What clients said of their data, where the method asks for it.
    lesson : VoteSummary or None
        Who taught what in the last round, where experts taught.
    aggregator : Aggregator
        Makes one model of the clients' models, of all and of each cluster's.
    limits : Limits
        What an update may be.
    shelf : UpdateStore
        Keeps the models that clients sent until they are averaged.
    sums : SecureSums or None
        Gets the sums of the clusters' updates, which are all that the server gets to know then.
    on_phase : callable
        Called with the round and the name of a phase of the server as it begins.
    outcome : RoundStats
        Of the round that is under way or was the last.
    """

    stateful: ClassVar[tuple[str, ...]] = (
        *("initial", "universals", "clusters", "experts"),
        *("descriptions", "lesson", "outcome"),
    )
    needs_signature = False
    needs_description = ""
    needs_comparison = False
    always_personalise = False

    def __init__(
        self, roster: ClientRegistry, participation: Participation, objective: LocalObjective = PLAIN, model: str = ""
    ) -> None:
        self.roster = roster
        self.participation = participation
        self.objective = objective
        self.model = model
        self.initial: State = {}
        self.universals: dict[str, State] = {model: {}}
        self.average: State = {}
        self.clusters: dict[str, int] = {}
        self.clusters_before: dict[str, int] = {}
        self.experts: dict[int, State] = {}
        self.dialogue = ReplyCollector(roster)
        self.descriptions = Descriptions(roster, self.dialogue.tell_problem)
        self.lesson: VoteSummary | None = None
        self.aggregator = Aggregator(mean)
        self.limits = Limits()
        self.shelf = UpdateStore()
        self.sums: SecureSums | None = None
        self.on_phase: Callable[[int, str], None] = lambda number, phase: None
        self.outcome = RoundStats(server_round=0)
        self._sampled: list[Client] = []
        self._left_out = 0
        self._tried: dict[str, bool] | None = None
        self._starts: dict[str, State | None] = {}
        self._candidates: tuple[State, ...] = ()
        self._grid: Grid | None = None

    @property
    def universal(self) -> State:
        """The universal model of the run's own architecture."""
        return self.universals[self.model]

    @universal.setter
    def universal(self, state: State) -> None:
        self.universals[self.model] = state

    @property
    def signatures(self) -> SignatureBook | None:
        """What the clients are compared by, in methods that compare them."""
        return None

    # --- what a method decides ---------------------------------------------------------------------

    def group(self, server_round: int, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        """Return the cluster of every client that has one so far, cluster 2 stays cluster 2; here there is but one."""
        return self.clusters | {update.name: 0 for update in updates}

    @abstractmethod
    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Turn the round's updates, sorted by client name, into the new universal model."""

    def universal_for(self, name: str) -> State:
        """Return the universal model of the client's architecture."""
        return self.universal

    def start_for(self, name: str) -> State | None:
        """Return what a client starts its local training from; None: from the candidate that it chooses."""
        return self.universal

    def candidates(self) -> Sequence[State]:
        """Return the models of which each client chooses the best for its data; most methods have none."""
        return ()

    def expert_for(self, name: str) -> State | None:
        """Return the client's own expert, or None where that is the universal model."""
        return self.experts.get(self.clusters[name]) if name in self.clusters else None

    def experts_of(self, model: str) -> Mapping[int, State]:
        """Return the experts of one architecture, by cluster."""
        return self.experts

    def prior_of(self, name: str) -> Tensor | None:
        """Return the log label shares in the client's expert, where the client should put its own for them."""
        return None

    # --- the moments of a Flower round -------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        first_round: int = 1,
    ) -> Result:
        """Carry out the rounds up to ``num_rounds``, as Flower's own method does, which can only begin with the first.

        A round that fails changes nothing: the state is that after the round before it. Only what clients said of
        themselves is kept, so that they are not asked again. A round with too few updates is repeated once.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config
            See `flwr.serverapp.strategy.Strategy.start`.
        evaluate_fn : callable, optional
            Called after every round, and not before the first one.
        first_round : int (default: 1)
            Of those that are still to do; none are if it is larger than ``num_rounds``.
        """
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        result, arrays = Result(arrays=initial_arrays), initial_arrays
        self._tried = None
        self.summary()
        for server_round in range(first_round, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            before = Snapshot(self, without=(self.descriptions,))
            try:
                trained, train_metrics = self._attempted(before, server_round, arrays, train_config, grid, timeout)
                result.arrays = arrays = trained or arrays
                requests = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
                replies = grid.send_and_receive(requests, timeout=timeout)
                self.aggregate_evaluate(server_round, replies)
            except BaseException:
                before.put_back()
                raise
            if train_metrics:
                result.train_metrics_clientapp[server_round] = train_metrics
            if evaluate_fn and (scores := evaluate_fn(server_round, arrays)):
                log(INFO, "\t└──> %s", scores)
                result.evaluate_metrics_serverapp[server_round] = scores
        return result

    def _attempted(
        self,
        before: Snapshot,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        timeout: float,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train, and once more from the state before if too few updates came."""
        try:
            return self._train(server_round, arrays, config, grid, timeout)
        except TooFewUpdates as error:
            log(WARNING, "%s; the round is repeated", error)
            repeated = self.outcome.repeated()
            before.put_back()
            self.outcome = repeated
            return self._train(server_round, arrays, config, grid, timeout)

    def _train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, timeout: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        requests = self.configure_train(server_round, arrays, config, grid)
        return self.aggregate_train(server_round, grid.send_and_receive(requests, timeout=timeout))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients and send each its start; others, as far as there are any, if too few sent a usable update."""
        if not self.universal:  # later Flower hands back a copy of what the last round returned
            self.universal = dict(arrays.to_torch_state_dict())
        self.initial = self.initial or self.universal
        if self._tried is None:
            self.outcome = RoundStats(server_round, on_phase=self.on_phase)
            self.dialogue.problems.clear()
        self.roster.refresh(grid)
        for name in self.roster.returned:
            log(
                INFO,
                "client %s is back%s",
                name,
                f", in cluster {self.clusters[name]}" if name in self.clusters else "",
            )
        self._left_out = len(self.roster.away)
        self._sampled = self.roster.sample(self.participation.fraction_train, "train", server_round, self._tried)
        self._candidates = tuple(self.candidates())
        self.shelf.clear()
        self._grid = grid
        if self.sums is not None:
            self.sums.begin()
        if self.needs_description:
            with self.outcome.timed("local"):
                self._ask_for_descriptions(grid)
        present = {client.name for client in self.roster.clients}
        able = [
            client
            for client in self._sampled
            if client.name in present and (not self.needs_description or client.name in self.descriptions)
        ]
        self._starts = {client.name: self.start_for(client.name) for client in able}
        messages, record = [], Records()
        for client in able:
            start, universal = self._starts[client.name], self.universal_for(client.name)
            request = TrainRequest(
                start=start,
                server_round=server_round,
                candidates=self._candidates,
                universal=universal if self.needs_signature and start is not universal else None,
                signature=self.needs_signature,
                objective=self.objective,
                task=self.roster.task,
            )
            messages.append(request.to_message(client.node_id, record))
        self.outcome.bytes_down += sum(map(message_bytes, messages))
        return self.dialogue.begin(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies and hand them to the method.

        Raises
        ------
        TooFewUpdates
            If fewer than ``min_success_fraction`` of the sampled clients, and of those left out for not answering, sent
            a usable update. `start` takes back what has changed then.
        """
        updates = self._read_updates(self.dialogue.answers(replies, self.outcome, "local"))
        usable = {update.name for update in updates}
        self._tried = {client.name: client.name in usable for client in self._sampled}
        self._require_enough(len(updates))
        with self.outcome.timed("clustering"):
            self.clusters_before, self.clusters = self.clusters, self.group(server_round, updates)
        if self.sums is not None:
            updates = self._summed(self.sums, updates)
        else:
            updates = self.limits.weighed_in(updates, self.clusters)
        self._tried = None
        self.universal = self.aggregate(server_round, updates)
        self.outcome.clusters = dict(self.clusters)
        metrics = MetricRecord({"train-loss": self.outcome.train_loss, "clients": self.outcome.clients_ok})
        return ArrayRecord(self.universal), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients how good the universal expert and their own expert are on their test data."""
        last = server_round == self.participation.num_rounds
        if not last and server_round % self.participation.evaluate_every:
            return self.dialogue.begin([])
        fraction = 1.0 if last else self.participation.fraction_evaluate
        record = Records()
        messages = [
            EvaluateRequest(
                universal=self.universal_for(client.name),
                server_round=server_round,
                expert=self._own_expert(client.name),
                expert_prior=self.prior_of(client.name),
                personalise=self._personal(server_round),
                compare=self.needs_comparison,
                objective=self.objective,
                task=self.roster.task,
            ).to_message(client.node_id, record)
            for client in self.roster.sample(fraction, "evaluate", server_round)
        ]
        self.outcome.bytes_evaluation += sum(map(message_bytes, messages))
        return self.dialogue.begin(messages)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep each client's own numbers; the recorder sums them up."""
        for reply in self.dialogue.answers(replies, self.outcome, "evaluation"):
            self.outcome.bytes_evaluation += message_bytes(reply)
            name = self.roster.name_of(reply.metadata.src_node_id)
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                self.outcome.evaluations[name] = EvaluateReply.from_message(reply, self._personal(server_round))
            except WireError as error:
                log(WARNING, "%s could not evaluate: %s", name, error)
        self.outcome.evaluations = {name: self.outcome.evaluations[name] for name in by_name(self.outcome.evaluations)}
        return None

    def summary(self) -> None:
        """Log what will be done."""
        log(
            INFO,
            "\t└──> %s with %s clients, %s",
            type(self).__name__,
            len(self.roster.clients),
            self.participation,
        )

    # --- details -----------------------------------------------------------------------------------

    def _own_expert(self, name: str) -> State | None:
        """Return the client's expert if it is another model than the universal one."""
        expert = self.expert_for(name)
        return None if expert is self.universal_for(name) else expert

    def _personal(self, server_round: int) -> bool:
        """Return whether clients are asked to fine-tune their expert in this round."""
        return self.always_personalise or server_round == self.participation.num_rounds

    def _ask_for_descriptions(self, grid: Grid) -> None:
        messages = self.descriptions.requests(self.needs_description, self._sampled)
        if not messages:
            return
        self.descriptions.take_in(self.dialogue.ask(grid, messages, self.outcome))

    def _read_updates(self, replies: Iterable[Message]) -> list[ClientUpdate]:
        """Return the updates that may touch a model, sorted by client, and count the others."""
        read: dict[str, ClientUpdate] = {}
        measure, lengths = Lengths(), dict[str, float]()
        rejected: dict[str, str] = {}
        for message in replies:
            self.outcome.bytes_up += message_bytes(message)
            name = self.roster.name_of(message.metadata.src_node_id)
            if message.has_error():
                self.dialogue.tell_problem(f"{name} failed: {error_reason(message)}")
                continue
            try:
                read[name] = self._read_update(message, name)
            except WireError as error:
                rejected[name] = str(error)
            else:  # now, while its model is at hand
                lengths[name] = measure.of(read[name]) if self.limits.measuring else math.nan
        updates = [read[name] for name in by_name(read)]
        rejected |= self.limits.implausible(updates, lengths)
        for name, reason in rejected.items():
            self.dialogue.tell_problem(f"{name}: update rejected: {reason}")
        updates = self.limits.weighed([update for update in updates if update.name not in rejected])
        self.outcome.count(updates, len(self._sampled) + self._left_out, len(self.dialogue.misfits) + len(rejected))
        return self.limits.clipped(updates, lengths, self.shelf.put)

    def _summed(self, sums: SecureSums, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return one update for each cluster.

        Raises
        ------
        TooFewUpdates
            If too few clients would be in the sums. These are not seen then: of one round no client may be in two, or
            their difference would show it.
        FederationError
            If too few are in the end.
        """
        assert self._grid is not None
        grid = self._grid
        sums.tell = self.dialogue.tell_problem

        def ask(messages: list[Message]) -> Iterable[Message]:
            return self.dialogue.ask(grid, messages, self.outcome)

        with self.outcome.timed("local"):
            values = sum(vector_sizes(self.universal, self.needs_signature))
            sums.gather(self.outcome.server_round, updates, self.clusters, values, ask)
        self._tried = {client.name: client.name in sums.present for client in self._sampled}
        try:
            self._require_enough(len(sums.present))
        except TooFewUpdates:
            self.outcome.count([], len(updates) - len(sums.present), len(sums.rejected))
            raise
        with self.outcome.timed("local"):
            summed = sums.unmask(self.universal, self.needs_signature, ask)
        self.outcome.extra["clusters_lost"] = len(sums.lost)
        self.outcome.count(summed, len(updates), len(sums.rejected))
        try:
            self._require_enough(self.outcome.clients_ok)
        except TooFewUpdates as error:
            raise FederationError(f"{error}; no sum of this round may be taken again") from None
        return summed

    def _read_update(self, message: Message, name: str) -> ClientUpdate:
        if self.sums is not None:
            return self.sums.read(message, name, self._starts[name] or self.universal)
        reply = TrainReply.from_message(
            message,
            self.universal_for(name),
            self.needs_signature,
            num_candidates=len(self._candidates),
            max_examples=self.limits.max_examples,
        )
        return ClientUpdate(
            name=name,
            start=self._starts[name] or self._candidates[reply.choice or 0],
            state=self.shelf.put(reply.state),
            num_examples=reply.num_examples,
            signature=reply.signature,
            choice=reply.choice,
            train_loss=math.nan if reply.train_loss is None else reply.train_loss,
            steps=reply.steps,
        )

    def _require_enough(self, usable: int) -> None:
        left_out = round(self.participation.fraction_train * self._left_out)
        asked = len(self._sampled) + left_out
        needed = max(1, math.ceil(self.participation.min_success_fraction * asked - 1e-9))
        if usable < needed:
            problems = self.dialogue.problems
            raise TooFewUpdates(
                f"min-success-fraction: {usable} of {asked} clients sent a usable update in round "
                f"{self.outcome.server_round} and {needed} are needed"
                f"{', also when it was repeated' if self.outcome.repeats else ''}; "
                + (f"the first problem was: {problems[0]}" if problems else "the others did not answer")
            )
