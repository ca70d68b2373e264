"""Which policy decides what leaves: the run config's ``privacy``, within what the node allows."""

from flwr.app import Context

from client_app.release.budget import Budget
from client_app.release.gaussian import from_the_system, seeded
from client_app.release.noisy import NoisyRelease
from client_app.release.policy import ReleasePolicy
from client_app.release.sketched import SketchedRelease
from disue.config import ClientConfig
from disue.errors import ConfigError
from disue.nodes import NodeConfig


def choose_policy(
    config: ClientConfig, node: NodeConfig, purpose: str, server_round: int = 0, context: Context | None = None
) -> ReleasePolicy:
    """Return what decides what leaves.

    A client with data of its own takes noise from the operating system, whatever the run config says. In a simulation,
    where nobody is protected, it comes from the run seed.

    Parameters
    ----------
    config : ClientConfig
    node : NodeConfig
    purpose : str
        What is answered.
    server_round : int (default: 0)
    context : Context, optional
        Keeps what is hidden, and how much was released, where there is anything to hide or to release.

    Raises
    ------
    ConfigError
        If the client takes part in runs of another ``privacy`` only, or the run asks for more than its node allows.
    """
    if (wanted := node.wanted_privacy) not in (None, config.privacy):
        raise ConfigError(
            f"privacy: got '{config.privacy}'; '{node.client}' takes part in runs with privacy={wanted} only"
        )
    if config.privacy == "plain":
        return ReleasePolicy(config)
    own = node.data_path is not None
    draw = from_the_system if own else seeded(config.seed, config.privacy, purpose, node.client, server_round)
    if config.privacy == "secure":
        most = node.max_sketch_size
        if most is not None and config.sketch_size > most:
            raise ConfigError(
                f"sketch-size: got {config.sketch_size}; '{node.client}' has max-sketch-size={most}, use at most that"
            )
        return SketchedRelease(config, draw, node.client, server_round, context)
    return NoisyRelease(config, draw, Budget(config, node, context))
