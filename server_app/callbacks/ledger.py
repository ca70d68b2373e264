"""The budget of ``privacy=dp``: how much clients have released, and what it comes to."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from flwr.app import Message, MessageType

from disue.errors import ConfigError
from disue.files import json_object, read_text, write_whole
from disue.privacy.dp import ORDERS, SENSITIVITY
from disue.wire.describe import DESCRIBE
from server_app.callbacks.base import Callback, RunContext
from server_app.rows import Row, finite

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


class Ledger(Callback):
    """Counts what each client releases, and writes it to ``releases.json`` before the client is asked.

    So a request that was never answered counts, and so does what a run was told that was killed then.

    Attributes
    ----------
    releases : dict of client to int
    """

    def begin(self, run: RunContext) -> None:
        """Read what was released in the rounds that are over, and count from now on.

        Raises
        ------
        DataError
            If rounds are over and there is no ledger, or it is damaged.
        """
        nothing: dict[str, int] = {}
        self.releases = read_text(run.directory / LEDGER, _releases, None if run.rows.done else nothing)
        run.during.enter_context(self.watching(run))

    def after_round(self, run: RunContext, row: Row) -> None:
        """Add to the row epsilon, delta and the number of releases of the client that released most."""
        releases = max(self.releases.values(), default=0)
        noise, delta = run.config.dp_noise, run.config.dp_delta
        epsilon = epsilon_of(releases, noise, delta) if releases else 0.0
        row |= finite({"epsilon": epsilon, "delta": delta, "releases": releases})

    @contextmanager
    def watching(self, run: RunContext) -> Iterator[None]:
        """Count what clients are asked."""
        grid, push = run.grid, run.grid.push_messages

        def push_messages(messages: Iterable[Message]) -> Iterable[str]:
            asked = list(messages)
            self._enter(asked, run)
            return push(asked)

        grid.push_messages = push_messages  # type: ignore[method-assign]
        try:
            yield
        finally:
            grid.push_messages = push  # type: ignore[method-assign]

    def _enter(self, requests: list[Message], run: RunContext) -> None:
        for request in requests:
            if count := _releases_in(request):
                name = run.strategy.registry.name_of(request.metadata.dst_node_id)
                self.releases[name] = self.releases.get(name, 0) + count
        write_whole(run.directory / LEDGER, json.dumps(self.releases, indent=2) + "\n")


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
