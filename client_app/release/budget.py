"""What a node allows a run to learn with ``privacy=dp``: it counts its own releases, and refuses one too many."""

from bisect import bisect_right

from flwr.app import ConfigRecord, Context

from disue.config import ClientConfig
from disue.errors import ConfigError
from disue.nodes import NodeConfig
from disue.privacy.dp import epsilon_of, planned_releases
from disue.wire import HelloRequest

RECORD = "released"
USUAL_DELTA = 1e-5
"""The largest delta of a run where a node says nothing of it and limits epsilon."""


class Budget:
    """The releases of one client in one run.

    Parameters
    ----------
    config : ClientConfig
    node : NodeConfig
        ``max-epsilon``, ``max-delta``, ``min-dp-noise``.
    context : Context or None
        Keeps the count, in the node's memory; None where nothing is released.

    Raises
    ------
    ConfigError
        If the run has too little noise or too large a delta for the node.
    """

    def __init__(self, config: ClientConfig, node: NodeConfig, context: Context | None) -> None:
        self.config = config
        self.node = node
        self.context = context
        least = node.min_dp_noise or 0.0
        if config.dp_noise < least:
            raise ConfigError(
                f"dp-noise: got {config.dp_noise:g}; '{node.client}' has min-dp-noise={least:g}, use at least that"
            )
        most = node.max_delta or (1.0 if node.max_epsilon is None else USUAL_DELTA)
        if config.dp_delta > most:
            raise ConfigError(
                f"dp-delta: got {config.dp_delta:g}; '{node.client}' has max-delta={most:g}, use at most that"
            )

    @property
    def count(self) -> int:
        """Return how many releases there were in this run."""
        record = self.context.state.config_records.get(RECORD) if self.context else None
        return int(record["count"]) if record else 0  # type: ignore[arg-type]

    def check_plan(self, asked: HelloRequest) -> None:
        """Raise `ConfigError` if the run, as it is announced, asks for more than the node allows."""
        self._require(planned_releases(self.config, asked.prototypes, asked.description), "for which this run may ask")

    def spend(self) -> None:
        """Count a release that is about to be made; raise `ConfigError` if the node does not allow it."""
        if self.node.max_epsilon is None:
            return
        assert self.context is not None
        count = self.count + 1
        self._require(count, "for which it was asked")
        self.context.state[RECORD] = ConfigRecord({"count": count})

    def _require(self, releases: int, why: str) -> None:
        most, noise, delta = self.node.max_epsilon, self.config.dp_noise, self.config.dp_delta
        if most is None or (epsilon := epsilon_of(releases, noise, delta)) <= most:
            return
        allowed = bisect_right(range(releases), most, key=lambda count: epsilon_of(count, noise, delta)) - 1
        raise ConfigError(
            f"max-epsilon: {releases} releases with dp-noise={noise:g}, {why}, come to epsilon {epsilon:.6g} at delta "
            f"{delta:g}; '{self.node.client}' has max-epsilon={most:g}, which is {allowed} of them"
        )
