"""From config values to a strategy."""

from collections.abc import Callable

import torch

from disue.config import RunConfig
from disue.data import DATASETS, SCENARIOS, Federation
from disue.errors import ConfigError
from disue.models import MODELS, build_model
from disue.objective import LocalObjective
from disue.registry import Registry
from disue.seeding import derive_seed
from strategies.base import FederatedStrategy, Participation
from strategies.clusterers import CLUSTERERS, make_clusterer
from strategies.distiller import Distiller
from strategies.disue import DisUE, Server
from strategies.fedavg import FedAvg
from strategies.roster import Roster
from strategies.signatures import SIGNATURES
from strategies.teachers import TEACHERS

METHODS: Registry[Callable[[RunConfig, Roster, Federation, torch.device], FederatedStrategy]] = Registry("method")


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for the first value that names a part which does not exist."""
    registries: list[Registry] = [METHODS, DATASETS, SCENARIOS, MODELS, CLUSTERERS, SIGNATURES, TEACHERS]  # type: ignore[type-arg]
    for registry in registries:
        registry[getattr(config, registry.key)]


def check_sizes(config: RunConfig, num_clients: int) -> None:
    """Raise `ConfigError` where the config asks for more than this many clients can give."""
    if config.num_clusters > num_clients:
        raise ConfigError(
            f"num-clusters: got {config.num_clusters}; there are {num_clients} clients, use 0 to {num_clients}"
        )
    if config.min_clients > num_clients:
        raise ConfigError(f"min-clients: got {config.min_clients}; there are {num_clients} clients")


def make_strategy(config: RunConfig, roster: Roster, federation: Federation, device: torch.device) -> FederatedStrategy:
    """Build the configured method."""
    return METHODS[config.method](config, roster, federation, device)


def _participation(config: RunConfig) -> Participation:
    return Participation(
        num_rounds=config.num_server_rounds,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_every=config.evaluate_every,
        min_success_fraction=config.min_success_fraction,
    )


def _objective(config: RunConfig, prox_mu: float = 0.0) -> LocalObjective:
    """Return the configured objective; ``prox_mu`` is the method's own where the config leaves it open."""
    return LocalObjective(config.local_loss, prox_mu if config.prox_mu < 0.0 else config.prox_mu)


@METHODS.register("fedavg")
def _fedavg(config: RunConfig, roster: Roster, _federation: Federation, _device: torch.device) -> FederatedStrategy:
    return FedAvg(roster, _participation(config), _objective(config))


@METHODS.register("disue")
def _disue(config: RunConfig, roster: Roster, federation: Federation, device: torch.device) -> FederatedStrategy:
    expert_share = {"universal": 0.0, "expert": 1.0, "blend": config.blend}[config.initialisation]
    return DisUE(
        roster,
        _participation(config),
        Server(
            model=build_model(config.model, federation.dataset.shape, federation.dataset.num_classes),
            proxy=federation.proxy(),
            device=device,
            seed=config.seed,
        ),
        signature=SIGNATURES[config.signature],
        clusterer=make_clusterer(
            config.clusterer, config.num_clusters, random_state=derive_seed(config.seed, "clusterer") % 2**31
        ),
        teacher=TEACHERS[config.teacher],
        distiller=Distiller(
            steps=config.distill_steps,
            learning_rate=config.distill_learning_rate,
            batch_size=config.distill_batch_size,
            temperature=config.temperature,
        ),
        # What was trained with the balanced loss carries no prior that could be taken out.
        prior_correction=config.prior_correction and config.local_loss != "balanced",
        signature_memory=config.signature_memory,
        expert_share=expert_share,
        objective=_objective(config),
    )
