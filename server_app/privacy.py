"""What the modes of ``privacy`` refuse, and the budget of dp: how much clients have released, and what it comes to."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from disue.data import OWN
from disue.errors import ConfigError
from disue.files import json_object, read_text, write_whole
from disue.privacy.dp import COVERED_DESCRIPTIONS, ORDERS, SENSITIVITY
from disue.wire.describe import DESCRIBE
from server_app.config import RunConfig
from strategies.clustering.similarity import SIGNATURES, cosines
from strategies.methods import METHODS
from strategies.methods.disue import DisUESettings
from strategies.methods.parts import ASSIGNERS, Chosen

LEDGER = "releases.json"
SKETCHED = tuple(name for name, kind in SIGNATURES.items() if kind.gram is cosines)
"""Signatures of which a random projection keeps the likeness."""


def check_privacy(config: RunConfig) -> None:
    """Raise `ConfigError` where the claim of the mode would not hold."""
    if config.privacy == "dp":
        _check_dp(config)
    elif config.privacy == "secure":
        _check_secure(config)
    if config.privacy != "plain" and config.dataset == OWN and not config.class_names:
        raise ConfigError(
            f"classes: got ''; with privacy={config.privacy} clients do not tell theirs, name all of them"
        )


def _check_secure(config: RunConfig) -> None:
    chosen, limit = Chosen(config), DisUESettings.of(config).prototype_limit
    methods = [name for name, method in METHODS.items() if method.supports.sums]
    assigners = [name for name, kind in ASSIGNERS.items() if kind.supports.sums]
    refused = (
        ("method", config.method, config.method in methods, ", ".join(methods)),
        ("clusterer", config.clusterer, not chosen.assigner or config.clusterer in assigners, ", ".join(assigners)),
        ("signature", config.signature, not chosen.signature or config.signature in SKETCHED, ", ".join(SKETCHED)),
        ("aggregator", config.aggregator, config.aggregator == "mean", "mean"),
        ("clip-norm", config.clip_norm, config.clip_norm == 0.0, "0"),
        ("prototype-limit", limit, limit == 0.0, "0"),
    )
    for key, value, allowed, use in refused:
        if not allowed:
            raise ConfigError(f"{key}: got {value!r}; the server gets sums only with privacy=secure, use {use}")


def needs_sketch(config: RunConfig) -> bool:
    """Return whether clients are compared by their updates, of which the server gets a sketch with privacy=secure."""
    signature = Chosen(config).signature
    return signature is not None and signature.from_update is not None


def _check_dp(config: RunConfig) -> None:
    chosen = Chosen(config)
    for key, part in (("method", chosen.method), ("clusterer", chosen.assigner)):
        if part is not None and (uncovered := part.supports.uncovered):
            raise ConfigError(f"{key}: got '{getattr(config, key)}'; privacy=dp does not cover {uncovered}")
    signature, covered = chosen.signature, " or ".join(COVERED_DESCRIPTIONS)
    if signature and signature.from_update is None and config.signature not in COVERED_DESCRIPTIONS:
        raise ConfigError(
            f"signature: got '{config.signature}'; privacy=dp does not cover it, use {covered} or one made from updates"
        )


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
