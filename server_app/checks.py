"""What is checked of a run config before a client is asked: names, sizes, and what does not go together."""

from collections.abc import Iterable
from typing import Any

from disue.data import DATASETS, OWN, SCENARIOS, RunData
from disue.data.pool import POOL
from disue.errors import ConfigError
from disue.models import MODELS
from disue.privacy.dp import COVERED_DESCRIPTIONS
from disue.privacy.secagg import FEWEST
from disue.registry import Registry
from server_app.config import RunConfig
from strategies.aggregation.robust import AGGREGATORS
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.landmarks import MOST_COMPARED
from strategies.clustering.similarity import SIGNATURES, cosines
from strategies.distillation.teachers import TEACHERS
from strategies.methods import METHODS
from strategies.methods.chosen import Chosen
from strategies.methods.parts import ASSIGNERS, smallest_cluster

REGISTRIES: tuple[Registry[Any], ...] = (
    *(METHODS, DATASETS, SCENARIOS, MODELS, ASSIGNERS, SIGNATURES, TEACHERS, AGGREGATORS),
)
"""The parts that a run config names; each registry's ``key`` is the key that names one."""
PROXIES = {"holdout": "holdout", "dataset": "dataset:NAME", "path": "path:DIR", "generator": "generator"}
"""Kinds of proxy sets -> how a run config names one."""


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for the first value that names a part which does not exist, or does not fit another."""
    for registry in REGISTRIES:
        name = getattr(config, registry.key)
        if registry is not DATASETS or not name.startswith(POOL):
            registry[name]
    for model in config.models_of_clients:
        check_model(config, model, "client-models")
    if config.clusterer in CLUSTERERS:
        CLUSTERERS.configured(config.clusterer, config)(config.num_clusters, 0)
    proxies = METHODS[config.method].uses.proxies
    if proxies and config.proxy.partition(":")[0] not in proxies:
        *others, last = (PROXIES[kind] for kind in proxies)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"proxy: got '{config.proxy}'; method '{config.method}' needs {allowed}")
    check_privacy(config)
    METHODS[config.method].check(config)


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
    chosen = Chosen(config)
    methods = [name for name, method in METHODS.items() if method.supports.sums]
    assigners = [name for name, kind in ASSIGNERS.items() if kind.supports.sums]
    refused = (
        ("method", config.method, config.method in methods, ", ".join(methods)),
        ("clusterer", config.clusterer, not chosen.assigner or config.clusterer in assigners, ", ".join(assigners)),
        ("signature", config.signature, not chosen.signature or config.signature in SKETCHED, ", ".join(SKETCHED)),
        ("aggregator", config.aggregator, config.aggregator == "mean", "mean"),
        ("clip-norm", config.clip_norm, config.clip_norm == 0.0, "0"),
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
