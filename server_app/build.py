"""From a run config to the Flower strategy and its parts."""

import math
from functools import partial
from logging import WARNING

import torch
from flwr.common.logger import log

from disue.data import RunData
from disue.models import build_model
from disue.models.check import check_networks
from server_app.checks import needs_sketch
from server_app.config import RunConfig
from server_app.doubts import doubts
from strategies.aggregation.limits import Limits
from strategies.aggregation.store import UpdateStore
from strategies.clustering.similarity import SIGNATURES
from strategies.flower import FederatedStrategy
from strategies.methods import METHODS
from strategies.methods.parts import Parts
from strategies.rounds.collecting import Collector, PlainCollector, SecureCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.stats import Participation


def make_strategy(
    config: RunConfig,
    registry: ClientRegistry,
    data: RunData,
    device: torch.device,
    store: UpdateStore | None = None,
    run: str = "",
) -> FederatedStrategy:
    """Build the configured method and its Flower strategy.

    ``store``: where the clients' models of a round are kept. ``run``: as in `FederatedStrategy`.

    Raises
    ------
    ConfigError
        If the method cannot work with the clients' models.
    """
    check_task = partial(check_networks, shape=data.task.shape, num_outputs=data.task.num_outputs)
    check_task({config.model, *(client.model for client in registry.known)})
    check_name = registry.check_model

    def check_newcomer(model: str) -> None:
        check_name(model)
        check_task([model])

    registry.check_model = check_newcomer
    for doubt in doubts(config, data):
        log(WARNING, doubt)
    parts = Parts(config, data, device)
    method = METHODS[config.method].build(parts)
    num_strata = data.task.num_strata if method.needs.prototypes else 0
    if config.privacy == "secure":
        sums = SecureSums(config.secure_threshold, config.sketch_size * needs_sketch(config))
        collector: Collector = SecureCollector(sums, num_strata)
    else:
        limits = Limits(config.max_examples, config.max_norm, config.clip_norm, parts.caps)
        collector = PlainCollector(limits, store, num_strata)
    described_as = _described_as(config, data, method.needs.description) if method.needs.description else None
    return FederatedStrategy(
        registry, _participation(config), method, collector, described_as, run if method.needs.memory else ""
    )


def _described_as(config: RunConfig, data: RunData, signature: str) -> tuple[int, int] | None:
    """Return the shape of what clients say of their data."""
    if config.privacy == "secure":
        return 1, config.sketch_size
    shape, task = SIGNATURES[signature].shape, data.task
    head = build_model(config.model, task.shape, task.num_outputs, config.seed).head
    return shape and shape(task.num_strata, head.in_features, math.prod(task.shape))


def _participation(config: RunConfig) -> Participation:
    return Participation(
        num_rounds=config.num_server_rounds,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_every=config.evaluate_every,
        min_success_fraction=config.min_success_fraction,
    )
