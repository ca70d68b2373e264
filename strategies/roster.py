"""Who takes part: clients by stable name, sampled with the run seed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.errors import ConfigError, DisueError, FederationError, WireError
from disue.models import MODELS
from disue.naming import by_name
from disue.seeding import numpy_rng
from disue.wire import HelloReply, HelloRequest, error_reason


@dataclass(frozen=True)
class Client:
    """A client that said hello. Its node id changes when it reconnects, its name does not."""

    name: str
    node_id: int
    num_examples: int
    group: int
    num_partitions: int
    model: str


class Roster:
    """The clients that are connected.

    Parameters
    ----------
    seed : int
        The run seed; it alone decides who is sampled.
    timeout : float (default: 600.0)
        Seconds to wait for the answers to a hello.
    check_model : callable
        Raises `ConfigError` for an architecture that a client may not have.

    Attributes
    ----------
    models : dict of client to str
        The architecture of every client that is or was connected.
    """

    def __init__(
        self, seed: int, timeout: float = 600.0, check_model: Callable[[str], object] = MODELS.__getitem__
    ) -> None:
        self.seed = seed
        self.timeout = timeout
        self.check_model = check_model
        self.models: dict[str, str] = {}
        self._clients: dict[str, Client] = {}
        self._asked: set[int] = set()

    @property
    def clients(self) -> list[Client]:
        """All known clients, sorted by name."""
        return [self._clients[name] for name in by_name(self._clients)]

    def name_of(self, node_id: int) -> str:
        """Return the name of a known node, or a description of an unknown one."""
        names = [client.name for client in self._clients.values() if client.node_id == node_id]
        return names[0] if names else f"node {node_id}"

    def gather(self, grid: Grid, min_clients: int, join_timeout: float) -> None:
        """Wait for enough nodes, then ask each who it is.

        Raises
        ------
        FederationError
            If fewer than ``min_clients`` nodes join within ``join_timeout`` seconds, or fewer say hello, or one has
            an architecture that it may not have.
        """
        deadline = time.monotonic() + join_timeout
        while len(list(grid.get_node_ids())) < min_clients:
            if time.monotonic() > deadline:
                raise FederationError(
                    f"min-clients: {len(list(grid.get_node_ids()))} clients joined within {join_timeout:g} s "
                    f"and {min_clients} are needed; start more clients (num-supernodes in a simulation) "
                    "or lower min-clients"
                )
            time.sleep(0.2)
        problems = self.refresh(grid)
        for problem in problems:
            if isinstance(problem, FederationError):
                raise problem
        if len(self._clients) < min_clients:
            raise FederationError(
                f"min-clients: {len(self._clients)} clients answered and {min_clients} are needed"
                + (f"; the first problem was: {problems[0]}" if problems else "")
            )

    def refresh(self, grid: Grid) -> list[DisueError]:
        """Forget nodes that are gone, say hello to each new one once, and return what went wrong with them."""
        present = set(grid.get_node_ids())
        self._clients = {name: client for name, client in self._clients.items() if client.node_id in present}
        self._asked &= present
        new = sorted(present - self._asked)  # a node that refused or kept silent is not waited for every round
        if not new:
            return []
        self._asked |= set(new)
        problems: list[DisueError] = []
        replies = grid.send_and_receive([HelloRequest().to_message(node) for node in new], timeout=self.timeout)
        for reply in replies:
            node_id = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                hello = HelloReply.from_message(reply)
                if hello.name in self._clients:
                    self._asked.discard(node_id)  # the other one may be a dead connection that is still listed
                    raise WireError(f"a second client calls itself '{hello.name}'")
                self._require_fitting_model(hello)
            except (WireError, FederationError) as error:
                problems.append(error)
                log(WARNING, "node %s cannot take part: %s", node_id, error)
                continue
            self._clients[hello.name] = Client(
                hello.name, node_id, hello.num_examples, hello.group, hello.num_partitions, hello.model
            )
            self.models[hello.name] = hello.model
        log(INFO, "%s clients take part", len(self._clients))
        return problems

    def _require_fitting_model(self, hello: HelloReply) -> None:
        try:
            self.check_model(hello.model)
        except ConfigError as error:
            raise FederationError(f"{hello.name}: {error}") from None

    def sample(self, fraction: float, purpose: str, server_round: int) -> list[Client]:
        """Return a seeded sample of the clients, sorted by name; at least one."""
        clients = self.clients
        count = max(1, round(fraction * len(clients)))
        if count >= len(clients):
            return clients
        chosen = numpy_rng(self.seed, "sample", purpose, server_round).choice(len(clients), count, replace=False)
        return [clients[i] for i in sorted(chosen)]
