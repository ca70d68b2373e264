"""From config values to a strategy."""

import hashlib
import json
import math
from collections.abc import Iterable
from functools import partial
from logging import WARNING
from typing import Any

import torch
from flwr.common.logger import log

from disue.data import DATASETS, SCENARIOS, RunData
from disue.errors import ConfigError
from disue.models import MODELS, build_model
from disue.models.check import check_networks
from disue.privacy.secagg import FEWEST
from disue.registry import Registry
from server_app.config import RunConfig
from server_app.doubts import doubts
from server_app.privacy import check_privacy, needs_sketch
from server_app.resume import CHANGEABLE
from strategies.aggregation.limits import Limits
from strategies.aggregation.robust import AGGREGATORS
from strategies.aggregation.store import UpdateStore
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.landmarks import MOST_COMPARED
from strategies.clustering.similarity import SIGNATURES
from strategies.distillation.teachers import TEACHERS
from strategies.flower import FederatedStrategy
from strategies.methods import METHODS
from strategies.methods.parts import ASSIGNERS, Chosen, Parts, smallest_cluster
from strategies.rounds.collecting import Collector, PlainCollector, SecureCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.stats import Participation

REGISTRIES: tuple[Registry[Any], ...] = (
    *(METHODS, DATASETS, SCENARIOS, MODELS, ASSIGNERS, SIGNATURES, TEACHERS, AGGREGATORS),
)
"""The parts that a run config names; each registry's ``key`` is the key that names one."""
PROXIES = {"holdout": "holdout", "dataset": "dataset:NAME", "path": "path:DIR", "generator": "generator"}
"""Kinds of proxy sets -> how a run config names one."""


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for the first value that names a part which does not exist, or does not fit another."""
    for registry in REGISTRIES:
        registry[getattr(config, registry.key)]
    for model in config.models_of_clients:
        check_model(config, model, "client-models")
    if config.clusterer in CLUSTERERS:
        CLUSTERERS[config.clusterer](config.num_clusters, 0)
    proxies = METHODS[config.method].uses.proxies
    if proxies and config.proxy.partition(":")[0] not in proxies:
        *others, last = (PROXIES[kind] for kind in proxies)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"proxy: got '{config.proxy}'; method '{config.method}' needs {allowed}")
    check_privacy(config)


def check_model(config: RunConfig, model: str, key: str = "model") -> None:
    """Raise `ConfigError` for an architecture that no client of the configured run may have.

    Parameters
    ----------
    config : RunConfig
    model : str
        A client's architecture.
    key : str
        Where it comes from; it is named in the error.
    """
    MODELS.pick(model, key)
    reason = why_one_model(config)
    if model != config.model and reason:
        raise ConfigError(f"{key}: got '{model}' beside model '{config.model}'; {reason}")
    named = list(dict.fromkeys((config.model, *config.models_of_clients)))
    if config.robust and model not in named:
        raise ConfigError(
            f"{key}: got '{model}'; with robust=true clients have those of model and client-models: {', '.join(named)}"
        )


def why_one_model(config: RunConfig) -> str:
    """Return why all clients must have the run's own architecture; empty: they need not."""
    chosen = Chosen(config)
    if config.privacy == "secure":
        return "privacy 'secure' needs one architecture"
    if not chosen.method.supports.mixed_models:
        return f"method '{config.method}' needs one architecture"
    if chosen.assigner and not chosen.assigner.supports.mixed_models:
        return f"clusterer '{config.clusterer}' needs one architecture"
    if chosen.signature and chosen.signature.from_update:
        others = " or ".join(name for name, kind in SIGNATURES.items() if kind.from_update is None)
        return f"signature '{config.signature}' compares updates of one architecture, use {others}"
    return ""


def check_main_model(config: RunConfig, models: Iterable[str]) -> None:
    """Raise `ConfigError` if the run's own architecture is none of the clients'."""
    found = sorted(set(models))
    if config.model not in found:
        raise ConfigError(f"model: got '{config.model}'; no client has it, use one that they have: {', '.join(found)}")


def check_sizes(config: RunConfig, num_clients: int) -> None:
    """Raise `ConfigError` where the config asks for more than this many clients can give."""
    if config.num_clusters > num_clients:
        raise ConfigError(
            f"num-clusters: got {config.num_clusters}; there are {num_clients} clients, use 0 to {num_clients}"
        )
    smallest = smallest_cluster(config)
    compared = min(num_clients, MOST_COMPARED)
    if Chosen(config).signature and config.num_clusters * smallest > compared:
        why = f"min-cluster-size {smallest}" if smallest == config.min_cluster_size else f"{smallest} (privacy=secure)"
        among = f", the landmarks of {num_clients}," if compared < num_clients else ""
        raise ConfigError(
            f"num-clusters: got {config.num_clusters}; {compared} clients{among} make at most "
            f"{compared // smallest} clusters of {why}"
        )
    if config.privacy == "secure" and num_clients < FEWEST:
        raise ConfigError(
            f"privacy: got 'secure'; there are {num_clients} clients and a sum of {FEWEST} is the smallest"
        )
    if config.min_clients > num_clients:
        raise ConfigError(f"min-clients: got {config.min_clients}; there are {num_clients} clients")


def check_groups(config: RunConfig, data: RunData) -> None:
    """Raise `ConfigError` where the method is told the planted groups and the scenario plants none."""
    key = Chosen(config).naming(lambda uses: uses.planted_groups)
    if key and not data.has_groups:
        name = getattr(config, key)
        raise ConfigError(f"{key}: '{name}' needs planted groups and scenario '{config.scenario_name}' has none")


def make_strategy(
    config: RunConfig, registry: ClientRegistry, data: RunData, device: torch.device, store: UpdateStore | None = None
) -> FederatedStrategy:
    """Build the configured method and its Flower strategy.

    ``store``: where the clients' models of a round are kept.

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
    run = _run_name(config) if method.needs.memory else ""
    return FederatedStrategy(registry, _participation(config), method, collector, described_as, run)


def _run_name(config: RunConfig) -> str:
    """Return 16 hexadecimal digits that tell a run by what it computes."""
    told = {key: value for key, value in config.to_flower().items() if key not in CHANGEABLE}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


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
