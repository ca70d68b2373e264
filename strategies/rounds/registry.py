"""Who takes part: clients by stable name, sampled with the run seed."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import ClassVar

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.errors import ConfigError, DataError, DisueError, FederationError, WireError
from disue.models import MODELS
from disue.naming import by_name, quoted
from disue.seeding import numpy_rng
from disue.tasks import DataSummary, ImageClassification
from disue.wire import HelloReply, HelloRequest, error_reason
from strategies.rounds.hellos import Hellos
from strategies.rounds.keys import node_keys
from strategies.rounds.transport import is_no_answer
from strategies.stored import stored

JOIN_POLL_SECONDS = 0.2


@stored
@dataclass(frozen=True)
class Client:
    """A client that said hello. Its node id changes when it reconnects, its name does not.

    ``key`` is the fingerprint of its node's key; empty where nodes have no keys that last.
    """

    name: str
    node_id: int
    num_examples: int
    group: int
    num_partitions: int
    model: str
    summary: DataSummary | None = None
    key: str = ""


class ClientRegistry:
    """The clients that take part.

    Every round it says hello to who is new. A client that did not answer, whatever it was asked, is left out until it
    says hello again. The name of a client whose node has a key belongs to that key for the rest of the run, and when
    the run goes on after a break.

    The dataset is divided by one number for all: at the start the one that most clients say, which the run keeps.

    Parameters
    ----------
    seed : int
        The run seed; it alone decides who is sampled.
    timeout : float (default: 600.0)
        Seconds to wait for the answers to a hello; see `Hellos`.
    check_model : callable
        Raises `ConfigError` for an architecture that a client may not have.
    check_summary : callable
        Raises `DataError` where what a client says of data of its own, if it has any, does not go with the task.
    unfit : callable
        From clients, beside each other, and the task, to who cannot take part and why.
    partitions : int, optional
        Of a run that goes on: into how many parts its dataset is divided.
    hello : HelloRequest, optional
        What every node is asked first.

    Attributes
    ----------
    hellos : Hellos
        What nodes are asked first.
    task : ImageClassification or None
        What clients with data of their own are told with every request; None: clients know it.
    away : dict of client to Client
        Those that took part and are left out now.
    returned : list of str
        Who came back in the last `refresh`.
    """

    stateful: ClassVar[tuple[str, ...]] = ("task", "known")

    def __init__(
        self,
        seed: int,
        timeout: float = 600.0,
        check_model: Callable[[str], object] = MODELS.__getitem__,
        check_summary: Callable[[DataSummary | None, ImageClassification | None], object] = lambda summary, task: None,
        unfit: Callable[[Sequence[Client], ImageClassification | None], Mapping[str, str]] = lambda clients, task: {},
        partitions: int | None = None,
        hello: HelloRequest | None = None,
    ) -> None:
        self.seed = seed
        self.hellos = Hellos(hello or HelloRequest(), timeout)
        self.check_model = check_model
        self.check_summary = check_summary
        self.unfit = unfit
        self.task: ImageClassification | None = None
        self.away: dict[str, Client] = {}
        self.returned: list[str] = []
        self._clients: dict[str, Client] = {}
        self._names: dict[int, str] = {}
        self._partitions = partitions

    @property
    def clients(self) -> list[Client]:
        """All clients that take part now, sorted by name."""
        return [self._clients[name] for name in by_name(self._clients)]

    @property
    def known(self) -> list[Client]:
        """All clients that take or took part, sorted by name; when it is set, all are left out until they say hello."""
        everyone = self.away | self._clients
        return [everyone[name] for name in by_name(everyone)]

    @known.setter
    def known(self, clients: Iterable[Client]) -> None:
        self.away = {client.name: client for client in clients}
        self._names = {client.node_id: client.name for client in self.away.values()}

    @property
    def models(self) -> dict[str, str]:
        """The architecture of every client that takes or took part."""
        return {name: client.model for name, client in (self.away | self._clients).items()}

    def name_of(self, node_id: int) -> str:
        """Return the name of a known node, or a description of an unknown one."""
        return self._names.get(node_id, f"node {node_id}")

    def gather(self, grid: Grid, min_clients: int, join_timeout: float) -> None:
        """Wait for enough nodes, for enough of them that can take part, and for all that took part before.

        Raises
        ------
        FederationError
            If fewer than ``min_clients`` nodes join within ``join_timeout`` seconds, or fewer can take part, or as many
            say one number of partitions as another.
        """
        deadline = time.monotonic() + join_timeout
        while (joined := len(list(grid.get_node_ids()))) < min_clients:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"min-clients: {joined} clients joined within {join_timeout:g} s and {min_clients} are needed; "
                    "start more clients (num-supernodes in a simulation) or lower min-clients"
                )
            time.sleep(JOIN_POLL_SECONDS)
        problems = self.refresh(grid)
        while (self._agreeing() < min_clients or self.away) and time.monotonic() < deadline:
            time.sleep(JOIN_POLL_SECONDS)
            problems = self.refresh(grid) or problems
        problems += self._settle()
        if len(self._clients) < min_clients:
            raise FederationError(
                f"min-clients: {len(self._clients)} clients answered and {min_clients} are needed"
                + (f"; the first problem was: {problems[0]}" if problems else "")
            )
        unbound = [client.name for client in self.clients if not client.key]
        if 0 < len(unbound) < len(self._clients):
            log(
                WARNING,
                "no key binds these names; any node can say one whose client is away: %s",
                quoted(unbound),
            )

    def refresh(self, grid: Grid) -> list[DisueError]:
        """Leave out who is gone, say hello to everybody else who takes no part, and return what went wrong with them.

        Who is new is waited for.
        """
        self.returned = []
        keys = node_keys(grid)
        self._leave_out({client.node_id for client in self._clients.values()} - keys.keys(), "is no longer connected")
        answers = self.hellos.say(grid, keys, {client.node_id for client in self._clients.values()})
        problems: list[DisueError] = []
        for node_id in sorted(answers):
            if not is_no_answer(answers[node_id]):
                problems += self._take_in(answers[node_id], node_id, keys[node_id])
        if answers:
            bound = sum(bool(client.key) for client in self._clients.values())
            what = f"; the names of {bound} belong to their nodes' keys" if bound else ""
            log(INFO, "%s clients take part%s", len(self._clients), what)
        return problems

    def leave_out(self, nodes: Iterable[int]) -> None:
        """Go on without the clients of these nodes, which did not answer, until they say hello again."""
        self._leave_out(set(nodes), "did not answer")

    def _leave_out(self, nodes: set[int], reason: str) -> None:
        for client in [client for client in self.clients if client.node_id in nodes]:
            self.away[client.name] = self._clients.pop(client.name)
            log(WARNING, "client %s %s; going on without it", client.name, reason)

    def _refuse(self, client: Client, reason: str) -> DataError:
        """Go on without a client that said hello; it is asked again in later rounds."""
        del self._clients[client.name]
        error = DataError(f"{client.name}: {reason}")
        self.hellos.refuse(client.node_id, error)
        return error

    def _agreeing(self) -> int:
        """Return how many clients can take part and say the same number of partitions as most; none in a tie."""
        unfit = self.unfit(self.clients, self.task)
        fit = [client.num_partitions for client in self.clients if client.name not in unfit]
        told = Counter(fit).most_common(2)
        tie = len(told) > 1 and told[0][1] == told[1][1]
        return told[0][1] if told and not tie else 0

    def _settle(self) -> list[DataError]:
        """Refuse who cannot take part beside the others, and who says another number of partitions than most."""
        refused = [self._refuse(self._clients[name], why) for name, why in self.unfit(self.clients, self.task).items()]
        told = Counter(client.num_partitions for client in self.clients).most_common(2)
        if len(told) > 1 and told[0][1] == told[1][1]:
            raise FederationError(
                f"num-partitions: the clients disagree on it ({sorted(number for number, _ in told)}); "
                "give all nodes the same"
            )
        if told and self._partitions is None:
            self._partitions = told[0][0]
        outvoted = [client for client in self.clients if client.num_partitions != self._partitions]
        return refused + [self._refuse(client, self._other_partitions(client.num_partitions)) for client in outvoted]

    def _other_partitions(self, number: int) -> str:
        return f"num-partitions: got {number}; the run has {self._partitions}, give all nodes the same"

    def _take_in(self, reply: Message, node_id: int, key: str) -> list[DisueError]:
        """Enter a client, or return and, if it is not known yet, log why it cannot take part."""
        try:
            client = self._read(reply, node_id, key)
            self._require_own_name(client)
            self.hellos.require_one_name(node_id, client.name)
            if self._partitions is not None and client.num_partitions != self._partitions:
                raise DataError(f"{client.name}: {self._other_partitions(client.num_partitions)}")
        except (WireError, DataError, FederationError) as error:
            self.hellos.refuse(node_id, error)
            return [error]
        self.hellos.welcome(node_id)
        if before := self.away.pop(client.name, None):
            self.returned.append(client.name)
            if self._names.get(before.node_id) == client.name:  # another may be on that node by now
                del self._names[before.node_id]
        self._names[client.node_id] = client.name
        self._clients[client.name] = client
        return []

    def _require_own_name(self, client: Client) -> None:
        """Raise `WireError` if a client that took part before has the name, and its node had another key."""
        before = self.away.get(client.name)
        if before is not None and before.key not in ("", client.key):
            has = f"has the key {client.key[:16]}" if client.key else "was registered without a key"
            raise WireError(
                f"the name '{client.name}' belongs in this run to the node with the key {before.key[:16]}, and this "
                f"node {has}; start it with that key, or give it another name"
            )

    def _read(self, reply: Message, node_id: int, key: str) -> Client:
        if reply.has_error():
            raise WireError(error_reason(reply))
        hello = HelloReply.from_message(reply)
        if hello.name in self._clients:  # maybe a dead connection that is still listed
            raise WireError(f"a second client calls itself '{hello.name}'")
        try:
            self.check_model(hello.model)
        except ConfigError as error:
            raise FederationError(f"{hello.name}: {error}") from None
        try:
            self.check_summary(hello.summary, self.task)
        except DataError as error:
            raise DataError(f"{hello.name}: {error}") from None
        told = hello.num_examples, hello.group, hello.num_partitions, hello.model, hello.summary
        return Client(hello.name, node_id, *told, key)

    def sample(
        self, fraction: float, purpose: str, server_round: int, tried: Mapping[str, bool] | None = None
    ) -> list[Client]:
        """Return a seeded sample of the clients, sorted by name; at least one.

        Parameters
        ----------
        fraction : float
        purpose : str
        server_round : int
        tried : mapping of client to bool, optional
            In a round that is repeated, who was asked before -> whether the answer was of use: of those that are there,
            the ones that were not asked come first, and the ones whose answer was of no use last.
        """
        clients = self.clients
        count = max(1, round(fraction * len(clients)))
        if count >= len(clients):
            return clients
        if not tried:
            chosen = numpy_rng(self.seed, "sample", purpose, server_round).choice(len(clients), count, replace=False)
            return [clients[i] for i in sorted(chosen)]
        last = {True: 1, False: 2}
        order = numpy_rng(self.seed, "sample again", purpose, server_round).permutation(len(clients))
        ranks = [last[tried[client.name]] if client.name in tried else 0 for client in clients]
        return [clients[i] for i in sorted(sorted(order, key=ranks.__getitem__)[:count])]
