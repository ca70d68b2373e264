"""From config values to a strategy."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from logging import WARNING
from typing import Any

import torch
from flwr.common.logger import log

from disue.config import RunConfig
from disue.data import DATASETS, SCENARIOS, RunData
from disue.errors import ConfigError
from disue.model_check import check_networks
from disue.models import MODELS, build_model
from disue.registry import Registry
from disue.secure import FEWEST
from server_app.doubts import doubts
from server_app.privacy import check_privacy, needs_sketch
from strategies.aggregation.limits import Limits
from strategies.aggregation.robust import AGGREGATORS
from strategies.aggregation.store import UpdateStore
from strategies.clustering.estimators import CLUSTERERS
from strategies.clustering.landmarks import MOST_COMPARED
from strategies.clustering.similarity import SIGNATURES
from strategies.distillation.proxy import is_foreign
from strategies.distillation.teachers import TEACHERS
from strategies.distillation.universal import UniversalDistillation
from strategies.flower import FederatedStrategy
from strategies.methods.base import Method
from strategies.methods.cfl import CFL
from strategies.methods.disue import DisUE, DisUEOptions
from strategies.methods.fedavg import FedAvg
from strategies.methods.fedavg_ft import FedAvgFT
from strategies.methods.feddf import FedDF
from strategies.methods.fedlc import FedLC
from strategies.methods.fedprox import USUAL_MU, FedProx
from strategies.methods.fesem import FeSEM
from strategies.methods.ifca import IFCA
from strategies.methods.local import Local
from strategies.methods.oneshot import FLHC, FedGroup
from strategies.methods.oracle import Oracle
from strategies.methods.pacfl import PACFL
from strategies.methods.parts import ASSIGNERS, Parts, smallest_cluster
from strategies.rounds.collecting import Collector, PlainCollector, SecureCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.stats import Participation

METHODS: Registry[Callable[[Parts], Method[Any]]] = Registry("method")

REGISTRIES: tuple[Registry[Any], ...] = (
    *(METHODS, DATASETS, SCENARIOS, MODELS, ASSIGNERS, SIGNATURES, TEACHERS, AGGREGATORS),
)
"""The parts that a run config names; each registry's ``key`` is the key that names one."""


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` for the first value that names a part which does not exist, or does not fit another."""
    for registry in REGISTRIES:
        registry[getattr(config, registry.key)]
    for model in config.models_of_clients:
        check_model(config, model, "client-models")
    if config.clusterer in CLUSTERERS:
        CLUSTERERS[config.clusterer](config.num_clusters, 0)
    if config.method == "feddf" and config.proxy == "generator":
        raise ConfigError("proxy: got 'generator'; method 'feddf' needs holdout, dataset:NAME or path:DIR")
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
    if config.privacy == "secure":
        return "privacy 'secure' needs one architecture"
    if config.method != "disue":
        return f"method '{config.method}' needs one architecture"
    if config.clusterer == "ifca":
        return "clusterer 'ifca' needs one architecture"
    if config.clusterer in CLUSTERERS and SIGNATURES[config.signature].from_update:
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
    by_signature = config.method == "disue" and config.clusterer in CLUSTERERS
    smallest = smallest_cluster(config)
    compared = min(num_clients, MOST_COMPARED)
    if by_signature and config.num_clusters * smallest > compared:
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


def knows_planted_groups(config: RunConfig) -> bool:
    """Return whether the configured method is told the planted groups."""
    return config.method == "oracle" or (config.method == "disue" and config.clusterer == "oracle")


def check_groups(config: RunConfig, data: RunData) -> None:
    """Raise `ConfigError` where the method is told the planted groups and the scenario plants none."""
    if knows_planted_groups(config) and not data.has_groups:
        key = "method" if config.method == "oracle" else "clusterer"
        raise ConfigError(f"{key}: 'oracle' needs planted groups and scenario '{config.scenario_name}' has none")


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
    check_task = partial(check_networks, shape=data.task.shape, num_classes=data.task.num_classes)
    check_task({config.model, *(client.model for client in registry.known)})
    check_name = registry.check_model

    def check_newcomer(model: str) -> None:
        check_name(model)
        check_task([model])

    registry.check_model = check_newcomer
    for doubt in doubts(config, data):
        log(WARNING, doubt)
    parts = Parts(config, data, device)
    method = METHODS[config.method](parts)
    if config.privacy == "secure":
        sums = SecureSums(config.secure_threshold, config.sketch_size * needs_sketch(config))
        collector: Collector = SecureCollector(sums)
    else:
        limits = Limits(config.max_examples, config.max_norm, config.clip_norm, parts.caps)
        collector = PlainCollector(limits, store)
    described_as = _described_as(config, data, method.needs.description) if method.needs.description else None
    return FederatedStrategy(registry, _participation(config), method, collector, described_as)


def _described_as(config: RunConfig, data: RunData, signature: str) -> tuple[int, int] | None:
    """Return the shape of what clients say of their data."""
    if config.privacy == "secure":
        return 1, config.sketch_size
    shape = SIGNATURES[signature].shape
    head = build_model(config.model, data.task.shape, data.task.num_classes, config.seed).head
    return shape and shape(head.out_features, head.in_features, math.prod(data.task.shape))


def _participation(config: RunConfig) -> Participation:
    return Participation(
        num_rounds=config.num_server_rounds,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_every=config.evaluate_every,
        min_success_fraction=config.min_success_fraction,
    )


@METHODS.register("local")
def _local(parts: Parts) -> Method[Any]:
    return Local(parts.main, parts.objective(), parts.aggregator)


@METHODS.register("fedavg")
def _fedavg(parts: Parts) -> Method[Any]:
    return FedAvg(parts.main, parts.objective(), parts.aggregator)


@METHODS.register("fedprox")
def _fedprox(parts: Parts) -> Method[Any]:
    objective = parts.objective(USUAL_MU)
    return FedProx(parts.main, objective.prox_mu, objective, parts.aggregator)


@METHODS.register("fedlc")
def _fedlc(parts: Parts) -> Method[Any]:
    return FedLC(parts.main, parts.objective(), parts.aggregator)


@METHODS.register("fedavg-ft")
def _fedavg_ft(parts: Parts) -> Method[Any]:
    return FedAvgFT(parts.main, parts.objective(), parts.aggregator)


@METHODS.register("feddf")
def _feddf(parts: Parts) -> Method[Any]:
    return FedDF(parts.server, parts.fixed_proxy(), parts.distiller(), parts.objective(), parts.aggregator)


@METHODS.register("fesem")
def _fesem(parts: Parts) -> Method[Any]:
    return FeSEM(parts.main, parts.num_clusters, parts.random_state, parts.objective(), parts.aggregator)


@METHODS.register("cfl")
def _cfl(parts: Parts) -> Method[Any]:
    return CFL(parts.main, parts.config.cfl_eps1, parts.config.cfl_eps2, parts.objective(), parts.aggregator)


@METHODS.register("flhc")
def _flhc(parts: Parts) -> Method[Any]:
    clusterer, rounds = parts.agglomerative(), parts.config.warm_up_rounds
    return FLHC(parts.main, rounds, clusterer, parts.random_state, parts.objective(), parts.aggregator)


@METHODS.register("pacfl")
def _pacfl(parts: Parts) -> Method[Any]:
    return PACFL(parts.main, parts.agglomerative(), parts.random_state, parts.objective(), parts.aggregator)


@METHODS.register("ifca")
def _ifca(parts: Parts) -> Method[Any]:
    return IFCA(parts.main, parts.random_models(), parts.objective(), parts.aggregator)


@METHODS.register("fedgroup")
def _fedgroup(parts: Parts) -> Method[Any]:
    return FedGroup(parts.main, parts.num_clusters, parts.random_state, parts.objective(), parts.aggregator)


@METHODS.register("oracle")
def _oracle(parts: Parts) -> Method[Any]:
    return Oracle(parts.main, parts.objective(), parts.aggregator)


@METHODS.register("disue")
def _disue(parts: Parts) -> Method[Any]:
    config = parts.config
    starts = {"universal": 0.0, "expert": 1.0, "blend": config.blend, "learned": config.blend}
    distillation = UniversalDistillation(
        parts.server,
        parts.proxy(),
        teacher=TEACHERS[config.teacher],
        distiller=parts.distiller(config.student_share),
        # What was trained with the balanced loss carries no prior that could be taken out.
        prior_correction=config.prior_correction and config.local_loss != "balanced",
        prototype_weight=config.prototype_weight,
        label_counts_shared=config.share_label_counts,
        foreign_proxy=is_foreign(config.proxy),
    )
    options = DisUEOptions(
        expert_share=starts[config.initialisation],
        learn_share=config.initialisation == "learned",
        expert_memory=config.expert_memory,
        pool_prototypes=config.prototypes == "cluster",
        prototype_limit=config.prototype_limit,
        probation_rounds=config.probation_rounds,
        client_prior=config.expert_prior == "client",
        clients_compare=is_foreign(config.proxy) and config.privacy != "dp",  # with dp every answer costs
    )
    return DisUE(parts.assigner(), distillation, options, parts.objective(), parts.aggregator, parts.caps)
