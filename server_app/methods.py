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
from disue.models import MODELS, State, build_model, get_state
from disue.models.check import check_networks
from disue.objective import LocalObjective
from disue.privacy.secagg import FEWEST
from disue.registry import Registry
from disue.seeding import derive_seed
from server_app.doubts import doubts
from server_app.privacy import check_privacy, needs_sketch, smallest_cluster
from strategies.aggregation.caps import Caps
from strategies.aggregation.limits import Limits
from strategies.aggregation.robust import AGGREGATORS, Aggregator
from strategies.clustering.assignment import ByChoice, BySignature, ClusterAssigner, Planted
from strategies.clustering.estimators import CLUSTERERS, AtLeast, Clusterer
from strategies.clustering.landmarks import MOST_COMPARED
from strategies.clustering.similarity import SIGNATURES, of_sketches
from strategies.distillation.distiller import Distiller
from strategies.distillation.generator import Generator, GeneratorSettings, GeneratorTrainer
from strategies.distillation.proxy import USUAL_SIZE, is_foreign, load_proxy
from strategies.distillation.server import FixedProxy, GeneratedProxy, ProxySource, Server
from strategies.distillation.teachers import TEACHERS
from strategies.flower import FederatedStrategy
from strategies.methods.cfl import CFL
from strategies.methods.disue import DisUE
from strategies.methods.fedavg import FedAvg
from strategies.methods.fedavg_ft import FedAvgFT
from strategies.methods.feddf import FedDF
from strategies.methods.fedlc import FedLC
from strategies.methods.fedprox import FedProx
from strategies.methods.fesem import FeSEM
from strategies.methods.ifca import IFCA
from strategies.methods.local import Local
from strategies.methods.oneshot import FLHC, FedGroup
from strategies.methods.oracle import Oracle
from strategies.methods.pacfl import PACFL
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.stats import Participation

METHODS: Registry[Callable[[RunConfig, ClientRegistry, RunData, torch.device], FederatedStrategy]] = Registry("method")

GROUPINGS: Registry[Callable[[RunConfig, ClientRegistry, RunData], ClusterAssigner]] = Registry("clusterer")
"""What ``clusterer`` may be: every clusterer of signatures, and what other methods have in its place."""

REGISTRIES: tuple[Registry[Any], ...] = (
    *(METHODS, DATASETS, SCENARIOS, MODELS, GROUPINGS, SIGNATURES, TEACHERS, AGGREGATORS),
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


def make_strategy(config: RunConfig, roster: ClientRegistry, data: RunData, device: torch.device) -> FederatedStrategy:
    """Build the configured method; raise `ConfigError` if it cannot work with the clients' models."""
    check_task = partial(check_networks, shape=data.task.shape, num_classes=data.task.num_classes)
    check_task({config.model, *(client.model for client in roster.known)})
    check_name = roster.check_model

    def check_newcomer(model: str) -> None:
        check_name(model)
        check_task([model])

    roster.check_model = check_newcomer
    for doubt in doubts(config, data):
        log(WARNING, doubt)
    strategy = METHODS[config.method](config, roster, data, device)
    strategy.aggregator = Aggregator(AGGREGATORS[config.aggregator], config.malicious_share)
    caps = Caps(config.max_weight, config.max_fit)
    strategy.limits = Limits(config.max_examples, config.max_norm, config.clip_norm, caps)
    if strategy.needs_description:
        strategy.descriptions.shape = _described_as(config, data, strategy.needs_description)
    if config.privacy == "secure":
        strategy.sums = SecureSums(config.secure_threshold, config.sketch_size * needs_sketch(config))
        strategy.limits = Limits(caps=Caps(max_fit=config.max_fit))  # no single update is seen
    return strategy


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


def _objective(config: RunConfig, prox_mu: float = 0.0) -> LocalObjective:
    """Return the configured objective; ``prox_mu`` is the method's own where the config leaves it open."""
    return LocalObjective(config.local_loss, prox_mu if config.prox_mu < 0.0 else config.prox_mu)


def _server(config: RunConfig, data: RunData, device: torch.device) -> Server:
    shape, num_classes = data.task.shape, data.task.num_classes
    return Server(lambda name: build_model(name, shape, num_classes, config.seed), config.model, device, config.seed)


def _proxy(config: RunConfig, data: RunData, device: torch.device) -> ProxySource:
    if config.proxy == "generator":
        return GeneratedProxy(_generator(config, data, device), config.seed)
    return FixedProxy(load_proxy(config, data))


def _generator(config: RunConfig, data: RunData, device: torch.device) -> GeneratorTrainer:
    task = data.task
    settings = GeneratorSettings(
        steps=config.generator_steps,
        learning_rate=config.generator_learning_rate,
        batch_size=config.generator_batch_size,
        adversarial_weight=config.generator_adversarial,
        diversity_weight=config.generator_diversity,
        prototype_weight=config.generator_prototypes,
        samples=config.proxy_size or USUAL_SIZE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "generator"))
        generator = Generator(task.shape, task.num_classes)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (task.mean, task.std))
    return GeneratorTrainer(generator, lambda images: (images - mean) / std, settings, device)


def _distiller(config: RunConfig, student_share: float = 1.0) -> Distiller:
    return Distiller(
        steps=config.distill_steps,
        learning_rate=config.distill_learning_rate,
        batch_size=config.distill_batch_size,
        temperature=config.temperature,
        student_share=student_share,
    )


def _agglomerative(config: RunConfig) -> Clusterer:
    return CLUSTERERS["agglomerative"](config.num_clusters, _random_state(config))


def _given_number(config: RunConfig) -> int:
    return config.num_clusters or config.num_groups


def _random_state(config: RunConfig) -> int:
    return derive_seed(config.seed, "clusterer") % 2**31


@METHODS.register("local")
def _local(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return Local(roster, _participation(config), _objective(config))


@METHODS.register("fedavg")
def _fedavg(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FedAvg(roster, _participation(config), _objective(config))


@METHODS.register("fedprox")
def _fedprox(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    objective = _objective(config, prox_mu=0.01)
    return FedProx(roster, _participation(config), objective, mu=objective.prox_mu)


@METHODS.register("fedlc")
def _fedlc(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FedLC(roster, _participation(config), _objective(config))


@METHODS.register("fedavg-ft")
def _fedavg_ft(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FedAvgFT(roster, _participation(config), _objective(config))


@METHODS.register("feddf")
def _feddf(config: RunConfig, roster: ClientRegistry, data: RunData, device: torch.device) -> FederatedStrategy:
    server, proxy = _server(config, data, device), load_proxy(config, data)
    return FedDF(roster, _participation(config), server, proxy, _distiller(config), _objective(config))


@METHODS.register("fesem")
def _fesem(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FeSEM(
        roster,
        _participation(config),
        num_clusters=_given_number(config),
        objective=_objective(config),
        random_state=_random_state(config),
    )


@METHODS.register("cfl")
def _cfl(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return CFL(roster, _participation(config), config.cfl_eps1, config.cfl_eps2, _objective(config))


@METHODS.register("flhc")
def _flhc(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FLHC(
        roster,
        _participation(config),
        config.warm_up_rounds,
        _agglomerative(config),
        _objective(config),
        _random_state(config),
    )


@METHODS.register("pacfl")
def _pacfl(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return PACFL(roster, _participation(config), _agglomerative(config), _objective(config), _random_state(config))


@METHODS.register("ifca")
def _ifca(config: RunConfig, roster: ClientRegistry, data: RunData, _device: torch.device) -> FederatedStrategy:
    return IFCA(roster, _participation(config), _random_models(config, data), _objective(config))


@METHODS.register("fedgroup")
def _fedgroup(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return FedGroup(roster, _participation(config), _given_number(config), _objective(config), _random_state(config))


@METHODS.register("oracle")
def _oracle(config: RunConfig, roster: ClientRegistry, _data: RunData, _device: torch.device) -> FederatedStrategy:
    return Oracle(roster, _participation(config), _objective(config))


@METHODS.register("disue")
def _disue(config: RunConfig, roster: ClientRegistry, data: RunData, device: torch.device) -> FederatedStrategy:
    expert_share = {"universal": 0.0, "expert": 1.0, "blend": config.blend, "learned": config.blend}[
        config.initialisation
    ]
    return DisUE(
        roster,
        _participation(config),
        _server(config, data, device),
        _proxy(config, data, device),
        grouping=GROUPINGS[config.clusterer](config, roster, data),
        teacher=TEACHERS[config.teacher],
        distiller=_distiller(config, config.student_share),
        # What was trained with the balanced loss carries no prior that could be taken out.
        prior_correction=config.prior_correction and config.local_loss != "balanced",
        prototype_weight=config.prototype_weight,
        pool_prototypes=config.prototypes == "cluster",
        label_counts_shared=config.share_label_counts,
        expert_share=expert_share,
        learn_share=config.initialisation == "learned",
        expert_memory=config.expert_memory,
        client_prior=config.expert_prior == "client",
        prototype_limit=config.prototype_limit,
        probation_rounds=config.probation_rounds,
        foreign_proxy=is_foreign(config.proxy),
        clients_compare=is_foreign(config.proxy) and config.privacy != "dp",  # with dp every answer costs
        objective=_objective(config),
    )


def _by_signature(clusterer: str, config: RunConfig, _roster: ClientRegistry, _data: RunData) -> ClusterAssigner:
    clusters = AtLeast(CLUSTERERS[clusterer], config.num_clusters, smallest_cluster(config), _random_state(config))
    kind = SIGNATURES[config.signature]
    if config.privacy == "secure":
        kind = of_sketches(kind)
    return BySignature(config.signature, kind, clusters, config.signature_memory, _random_state(config))


for _name in CLUSTERERS:
    GROUPINGS.register(_name)(partial(_by_signature, _name))


@GROUPINGS.register("ifca")
def _by_choice(config: RunConfig, _roster: ClientRegistry, data: RunData) -> ClusterAssigner:
    return ByChoice(_random_models(config, data))


@GROUPINGS.register("oracle")
def _planted(_config: RunConfig, roster: ClientRegistry, _data: RunData) -> ClusterAssigner:
    return Planted(roster)


def _random_models(config: RunConfig, data: RunData) -> list[State]:
    seeds = [derive_seed(config.seed, "candidate", number) for number in range(_given_number(config))]
    shape, num_classes = data.task.shape, data.task.num_classes
    return [get_state(build_model(config.model, shape, num_classes, seed)) for seed in seeds]
