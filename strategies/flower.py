"""The Flower Strategy: it sends, checks and retries, and hands a `Method` what came."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from logging import INFO, WARNING
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from disue.errors import TooFewUpdates, WireError
from disue.models import State, same_model
from disue.naming import by_name
from disue.signature import Signature
from disue.wire import (
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    ForgetRequest,
    Records,
    TrainRequest,
    error_reason,
    message_bytes,
)
from strategies.aggregation.caps import Caps
from strategies.methods.base import Method, MethodState, Step
from strategies.rounds.attempt import Attempt, Sent
from strategies.rounds.collecting import Clustered, Collector, PlainCollector, Received
from strategies.rounds.comparing import best_shares, num_asked
from strategies.rounds.descriptions import Descriptions
from strategies.rounds.features import told_early, told_features
from strategies.rounds.registry import Client, ClientRegistry
from strategies.rounds.replies import ReplyCollector
from strategies.rounds.round import Round
from strategies.rounds.stats import Participation, RoundStats
from strategies.updates import ClientSketch, ClientUpdate


class FederatedStrategy(Strategy):
    """A Flower strategy over stable client names, for any method.

    Everything it sends and receives is a typed record (`disue.wire`). It knows what a method needs, and no method. What
    the method knows is `state`, which is another object after every round that succeeds.

    Parameters
    ----------
    registry : ClientRegistry
        The clients that are connected.
    participation : Participation
        Who is asked, and how many must answer.
    method : Method
    collector : Collector, optional
        How updates come to the server; by default one by one.
    described_as : tuple of int, optional
        The shape of what clients say of their data, where it is known.
    run : str (default: "")
        What clients keep their memory of this run by, where the method lets them have one, and what digests of their
        data are keyed with: 16 hexadecimal digits that no other run has. A run that goes on after a break has those
        that it had.

    Attributes
    ----------
    state : MethodState or None
        After the last round that succeeded; None before the first.
    stats : RoundStats
        What that round did.
    descriptions : Descriptions
        What clients said of their data, where the method asks for it.
    on_phase : callable
        Called with the round and the name of a phase of the server as it begins.
    """

    stateful: ClassVar[tuple[str, ...]] = ("state", "stats", "descriptions", "run")

    def __init__(
        self,
        registry: ClientRegistry,
        participation: Participation,
        method: Method[Any],
        collector: Collector | None = None,
        described_as: tuple[int, ...] | None = None,
        run: str = "",
    ) -> None:
        self.registry = registry
        self.participation = participation
        self.method = method
        self.collector: Collector = collector or PlainCollector()
        self.replies = ReplyCollector(registry)
        self.descriptions = Descriptions(registry, self.replies.tell_problem, described_as)
        self.state: MethodState | None = None
        self.stats = RoundStats(server_round=0)
        self.run = run
        self.on_phase: Callable[[int, str], None] = lambda number, phase: None
        self._attempt: Attempt | None = None

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
        self.summary()
        for server_round in range(first_round, num_rounds + 1):
            log(INFO, "")
            log(INFO, "[ROUND %s/%s]", server_round, num_rounds)
            before = self.state, self.stats
            try:
                trained, train_metrics = self._train(server_round, arrays, train_config, grid, timeout)
                result.arrays = arrays = trained or arrays
                requests = self.configure_evaluate(server_round, arrays, evaluate_config, grid)
                replies = grid.send_and_receive(requests, timeout=timeout)
                self.aggregate_evaluate(server_round, replies)
            except BaseException:
                self.state, self.stats = before
                raise
            if train_metrics:
                result.train_metrics_clientapp[server_round] = train_metrics
            if evaluate_fn and (scores := evaluate_fn(server_round, arrays)):
                log(INFO, "\t└──> %s", scores)
                result.evaluate_metrics_serverapp[server_round] = scores
        if self.method.needs.memory and self._is_last(num_rounds):
            self._end(grid)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample clients and send each its start; others, as far as there are any, if too few sent a usable update."""
        state = self.state or self.method.begin(dict(arrays.to_torch_state_dict()))
        attempt = self._attempt = self._begun(server_round, state, grid)
        if self.method.needs.description:
            with attempt.stats.timed("local"):
                messages = self.descriptions.requests(self._describe_request(), attempt.sampled)
                self.descriptions.take_in(attempt.ask(messages) if messages else ())
        present = {client.name for client in self.registry.clients}
        able = [client for client in attempt.sampled if client.name in present and self._is_described(client)]
        starts, candidates = self.method.starts(state, able), tuple(self.method.candidates(state))
        attempt.sent = {
            client.name: Sent(
                name=client.name,
                start=starts[client.name],
                candidates=candidates,
                universal=self.method.seen_under(state, client.model),
                second=self.method.second(state, client),
            )
            for client in able
        }
        self.state = state
        record = Records()
        messages = [self._train_request(attempt.sent[client.name], client, server_round, record) for client in able]
        attempt.stats.bytes_down += sum(map(message_bytes, messages))
        return self.replies.begin(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies and hand them to the method.

        Raises
        ------
        TooFewUpdates
            If fewer than ``min-success-fraction`` of the sampled clients, and of those left out for not answering, sent
            a usable update. The state is as it was then.
        """
        attempt, state = self._under_way()
        stats, method = attempt.stats, self.method
        updates = self._accepted(attempt, self.replies.answers(replies, stats, "local"))
        attempt.require_enough({update.name for update in updates})
        if method.needs.description:
            self._renew_descriptions(attempt, updates)
        round = self._round(attempt, state)
        with stats.timed("clustering"):
            assigned: Step[Any] = method.assign(state, updates, round)
        stats.metrics |= assigned.metrics
        clusters = dict(assigned.state.clusters)
        clustered = Clustered(updates, clusters, like=method.universal(state, method.main))
        contributions = self.collector.contributions(clustered, attempt)
        step: Step[Any] = method.step(assigned.state, contributions, round)
        stats.metrics |= step.metrics
        stats.sheet, stats.clusters, stats.averages = step.sheet, clusters, step.averages
        self.state, self.stats = step.state, stats
        self.descriptions.changed.clear()
        metrics = MetricRecord({"train-loss": stats.train_loss, "clients": stats.clients_ok})
        return ArrayRecord(step.state.universals[method.main]), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients how good the universal expert and their own expert are on their test data."""
        _, state = self._under_way()
        if not self._is_last(server_round) and server_round % self.participation.evaluate_every:
            return self.replies.begin([])
        fraction = 1.0 if self._is_last(server_round) else self.participation.fraction_evaluate
        record, messages = Records(), []
        for client in self.registry.sample(fraction, "evaluate", server_round):
            universal, expert = self.method.universal(state, client.model), self.method.expert(state, client)
            request = EvaluateRequest(
                universal=universal,
                server_round=server_round,
                expert=None if expert is None or same_model(expert, universal) else expert,
                expert_prior=self.method.prior(state, client),
                personalise=self._is_personal(server_round),
                compare=self.method.needs.fits,
                memory=self.method.needs.memory,
                run=self.run,
                objective=self.method.objective,
                task=self.registry.task,
            )
            messages.append(request.to_message(client.node_id, record))
        self.stats.bytes_evaluation += sum(map(message_bytes, messages))
        return self.replies.begin(messages)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Keep each client's own numbers, and let the method learn from them."""
        attempt, state = self._under_way()
        evaluations: dict[str, EvaluateReply] = {}
        for reply in self.replies.answers(replies, self.stats, "evaluation"):
            self.stats.bytes_evaluation += message_bytes(reply)
            name = self.registry.name_of(reply.metadata.src_node_id)
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                evaluations[name] = EvaluateReply.from_message(reply, self._is_personal(server_round))
            except WireError as error:
                log(WARNING, "%s could not evaluate: %s", name, error)
        told = {name: evaluations[name] for name in by_name(evaluations)}
        evaluated = self.method.after_evaluation(state, told, self._round(attempt, state))
        self.state, self.stats.evaluations = evaluated.state, dict(evaluated.evaluations)
        self.stats.metrics |= evaluated.metrics
        return None

    def reached(self) -> MethodState:
        """Return the state after the last round; raise `RuntimeError` before the first."""
        if self.state is None:
            raise RuntimeError("no round has begun")
        return self.state

    def summary(self) -> None:
        """Log what will be done."""
        name, number = type(self.method).__name__, len(self.registry.clients)
        log(INFO, "\t└──> %s with %s clients, %s", name, number, self.participation)

    # --- details -----------------------------------------------------------------------------------

    def _train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, timeout: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Train, and once more if too few updates came."""
        self._attempt = None
        try:
            requests = self.configure_train(server_round, arrays, config, grid)
            return self.aggregate_train(server_round, grid.send_and_receive(requests, timeout=timeout))
        except TooFewUpdates as error:
            log(WARNING, "%s; the round is repeated", error)
            requests = self.configure_train(server_round, arrays, config, grid)
            return self.aggregate_train(server_round, grid.send_and_receive(requests, timeout=timeout))

    def _begun(self, server_round: int, state: MethodState, grid: Grid) -> Attempt:
        """Begin an attempt at a round, a second one if the first at the same round did not succeed."""
        before = self._attempt if self._attempt and self._attempt.stats.server_round == server_round else None
        if before is None:
            self.replies.problems.clear()
        stats = before.stats.repeated() if before else RoundStats(server_round, on_phase=self.on_phase)
        self.registry.refresh(grid)
        for name in self.registry.returned:
            where = f", in cluster {state.clusters[name]}" if name in state.clusters else ""
            log(INFO, "client %s is back%s", name, where)
        left_out, tried = len(self.registry.away), before.tried if before else None
        sampled = self.registry.sample(self.participation.fraction_train, "train", server_round, tried)
        self.collector.begin()
        return Attempt(grid, self.replies, self.participation, stats, sampled, left_out)

    def _end(self, grid: Grid) -> None:
        """Let clients delete what they kept for the run, and say who did not.

        Not before the last round is saved: until then it may have to be repeated.
        """
        left = {client.name: "it is away" for client in self.registry.known}
        requests = [ForgetRequest(self.run).to_message(client.node_id) for client in self.registry.clients]
        for reply in self.replies.ask(grid, requests, RoundStats(self.participation.num_rounds)) if requests else ():
            name = self.registry.name_of(reply.metadata.src_node_id)
            if reply.has_error():
                left[name] = error_reason(reply)
            else:
                del left[name]
        for name in by_name(left):
            log(WARNING, "%s has not deleted what it kept for run %s: %s", name, self.run, left[name])

    def _under_way(self) -> tuple[Attempt, MethodState]:
        if self._attempt is None:
            raise RuntimeError("configure_train comes first")
        return self._attempt, self.reached()

    def _round(self, attempt: Attempt, state: MethodState) -> Round:
        """Return the round as the method sees it."""
        return Round(
            number=attempt.stats.server_round,
            models=self.registry.models,
            clusters_before=state.clusters,
            groups={client.name: client.group for client in self.registry.clients},
            descriptions=self.descriptions,
            changed=frozenset(self.descriptions.changed),
            timed=attempt.stats.timed,
            best_shares=partial(self._best_shares, attempt),
            features=partial(self._features, attempt),
            early=partial(self._early, attempt),
        )

    def _is_last(self, server_round: int) -> bool:
        return server_round == self.participation.num_rounds

    def _is_personal(self, server_round: int) -> bool:
        """Return whether clients are asked to fine-tune their expert in this round."""
        return self.method.needs.personal or self._is_last(server_round)

    def _is_described(self, client: Client) -> bool:
        return not self.method.needs.description or client.name in self.descriptions

    def _describe_request(self) -> DescribeRequest:
        return DescribeRequest(self.method.needs.description, self.registry.task, self.run)

    def _renew_descriptions(self, attempt: Attempt, updates: Sequence[ClientUpdate | ClientSketch]) -> None:
        """Let clients that trained on other data than they described describe them, before they are clustered."""
        trained_on = {update.name: update.digest for update in updates}
        if messages := self.descriptions.outdated(self._describe_request(), trained_on):
            with attempt.stats.timed("local"):
                self.descriptions.take_in(attempt.ask(messages))

    def _train_request(self, sent: Sent, client: Client, server_round: int, record: Records) -> Message:
        needs = self.method.needs.prototypes and (sent.start is None or not same_model(sent.start, sent.universal))
        request = TrainRequest(
            start=sent.start,
            server_round=server_round,
            candidates=sent.candidates,
            universal=sent.universal if needs else None,
            signature=self.method.needs.prototypes,
            covariance=self.method.needs.covariance,
            digest=self.method.needs.digest or bool(self.method.needs.description),
            memory=self.method.needs.memory,
            run=self.run,
            shared=self.method.shared(self.reached()),
            second=sent.second,
            objective=self.method.objective,
            task=self.registry.task,
        )
        return request.to_message(client.node_id, record)

    def _accepted(self, attempt: Attempt, replies: Iterable[Message]) -> list[Any]:
        """Return the updates that may touch a model, sorted by client, and count the others."""
        read: dict[str, Received] = {}
        rejected: dict[str, str] = {}
        stats = attempt.stats
        for message in replies:
            stats.bytes_up += message_bytes(message)
            name = self.registry.name_of(message.metadata.src_node_id)
            if message.has_error():
                self.replies.tell_problem(f"{name} failed: {error_reason(message)}")
                continue
            try:
                read[name] = self.collector.read(message, attempt.sent[name])
            except WireError as error:
                rejected[name] = str(error)
        accepted = self.collector.accept([read[name] for name in by_name(read)])
        rejected |= accepted.rejected
        for name, reason in rejected.items():
            self.replies.tell_problem(f"{name}: update rejected: {reason}")
        asked, misfits = len(attempt.sampled) + attempt.left_out, len(self.replies.misfits)
        stats.count(len(accepted.updates), asked, misfits + len(rejected))
        stats.tell(accepted.seen)
        return list(accepted.updates)

    def _best_shares(
        self,
        attempt: Attempt,
        students: Mapping[str, State],
        averages: Mapping[str, State],
        caps: Caps,
        loss_unit: float,
    ) -> dict[str, float]:
        """Ask a few of the clients; see `Round`."""
        number, clients = attempt.stats.server_round, len(self.registry.clients)
        if not clients:
            return {}
        return best_shares(
            attempt.ask,
            self.registry.sample(num_asked(clients) / clients, "compare", number),
            number,
            students,
            averages,
            self.method.objective,
            self.registry.task,
            caps,
            loss_unit,
        )

    def _features(
        self, attempt: Attempt, models: Mapping[str, State], num_strata: int, share: float
    ) -> dict[str, Signature]:
        """Ask a share of the clients; see `Round`."""
        number = attempt.stats.server_round
        with attempt.stats.timed("local"):
            asked = self.registry.sample(share, "features", number)
            return told_features(attempt.ask, asked, number, models, num_strata, self.registry.task)

    def _early(
        self, attempt: Attempt, names: Collection[str], shape: tuple[int, int], covariance: bool
    ) -> dict[str, Signature]:
        """Ask the named clients; see `Round`."""
        asked = [client for client in self.registry.clients if client.name in names]
        with attempt.stats.timed("local"):
            number, task = attempt.stats.server_round, self.registry.task
            return told_early(attempt.ask, asked, number, shape, covariance, task)
