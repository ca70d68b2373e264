"""The budget of ``privacy=dp``: how much clients have released, and what it comes to."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from disue.errors import ConfigError
from disue.files import json_object, read_text, write_whole
from disue.privacy.dp import ORDERS, SENSITIVITY
from disue.wire.describe import DESCRIBE
from server_app.config import RunConfig

LEDGER = "releases.json"


def check_accountant() -> None:
    """Raise `ConfigError` if privacy=dp is asked for and the accountant is not there."""
    if find_spec("opacus") is None:
        raise ConfigError("privacy: got 'dp'; the accountant is missing, use plain or pip install 'disue[dp]'")


def epsilon_of(releases: int, noise: float, delta: float) -> float:
    """Return the epsilon of so many releases, which may each depend on those before, by Rényi accounting.

    Mironov, "Rényi Differential Privacy", CSF 2017, with Opacus. Nothing is gained by sampling clients.

    Parameters
    ----------
    releases : int
    noise : float
        Deviation of the noise, in bounds of the vectors.
    delta : float
    """
    with _logging_as_it_is():
        from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    divergences = compute_rdp(q=1.0, noise_multiplier=noise / SENSITIVITY, steps=releases, orders=ORDERS)
    epsilon, _ = get_privacy_spent(orders=ORDERS, rdp=divergences, delta=delta)
    return max(0.0, float(epsilon))


@contextmanager
def _logging_as_it_is() -> Iterator[None]:
    """Undo what a package that is imported inside does to the root logger: Flower's lines would come twice."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class Ledger:
    """Counts what each client releases, and writes it to ``releases.json`` before the client is asked.

    So a request that was never answered counts, and so does what a run was told that was killed then.

    Parameters
    ----------
    directory : Path
        The run directory.
    config : RunConfig
    name_of : callable
        From a node id to a client's name.
    rounds : int (default: 0)
        Those that are over; then there must be a ledger.

    Raises
    ------
    DataError
        If there is none, or it is damaged.
    """

    def __init__(self, directory: Path, config: RunConfig, name_of: Callable[[int], str], rounds: int = 0) -> None:
        self.path = directory / LEDGER
        self.config = config
        self.name_of = name_of
        nothing: dict[str, int] = {}
        self.releases = read_text(self.path, _releases, None if rounds and config.privacy == "dp" else nothing)

    def spent(self) -> dict[str, float | int]:
        """Return epsilon, delta and the number of releases of the client that released most; {} without noise."""
        if self.config.privacy != "dp":
            return {}
        releases = max(self.releases.values(), default=0)
        epsilon = epsilon_of(releases, self.config.dp_noise, self.config.dp_delta) if releases else 0.0
        return {"epsilon": epsilon, "delta": self.config.dp_delta, "releases": releases}

    @contextmanager
    def watching(self, grid: Grid) -> Iterator[None]:
        """Count what is asked through a grid."""
        if self.config.privacy != "dp":
            yield
            return
        push = grid.push_messages

        def push_messages(messages: Iterable[Message]) -> Iterable[str]:
            asked = list(messages)
            self._enter(asked)
            return push(asked)

        grid.push_messages = push_messages  # type: ignore[method-assign]
        try:
            yield
        finally:
            grid.push_messages = push  # type: ignore[method-assign]

    def _enter(self, requests: list[Message]) -> None:
        for request in requests:
            if count := _releases_in(request):
                name = self.name_of(request.metadata.dst_node_id)
                self.releases[name] = self.releases.get(name, 0) + count
        write_whole(self.path, json.dumps(self.releases, indent=2) + "\n")


def _releases_in(request: Message) -> int:
    """Return how many releases are in the reply to a request."""
    kind = request.metadata.message_type
    if kind == MessageType.TRAIN:
        return 2 if request.content["config"]["signature"] else 1
    return 1 if kind in (DESCRIBE, MessageType.EVALUATE) else 0


def _releases(text: str) -> dict[str, int]:
    releases = json_object(text)
    if not all(type(count) is int and count > 0 for count in releases.values()):
        raise ValueError("it holds something else than counts")
    return releases
