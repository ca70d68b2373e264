"""From a run's settings to the parts that methods are made of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from disue.data import RunData
from disue.errors import ConfigError
from disue.models import State, build_model, get_state
from disue.objective import LocalObjective
from disue.privacy.secagg import FEWEST
from disue.registry import Registry
from disue.seeding import derive_seed
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import AGGREGATORS, Aggregator
from strategies.clustering.assignment import ByChoice, BySignature, ClusterAssigner, Planted
from strategies.clustering.estimators import CLUSTERERS, AtLeast, Clusterer
from strategies.clustering.similarity import SIGNATURES, of_sketches
from strategies.distillation.distiller import Distiller
from strategies.distillation.generator import Generator, GeneratorOptions, GeneratorTrainer
from strategies.distillation.proxy import MOST_BYTES, USUAL_SIZE, ProxySettings, load_proxy, require_images
from strategies.distillation.server import FixedProxy, GeneratedProxy, ProxySource, Server
from strategies.distillation.teachers import TEACHERS, Teacher
from strategies.methods.declarations import Supports, Uses
from strategies.methods.settings import StrategyConfig


class Parts:
    """What a method takes of what it needs. Nothing is made before it is asked for.

    Parameters
    ----------
    config : StrategyConfig
    data : RunData
    device : torch.device
        The server's.
    """

    def __init__(self, config: StrategyConfig, data: RunData, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.device = device

    @property
    def main(self) -> str:
        """The run's own architecture."""
        return self.config.model

    @property
    def random_state(self) -> int:
        """Seed of clusterers."""
        return derive_seed(self.config.seed, "clusterer") % 2**31

    @property
    def aggregator(self) -> Aggregator:
        """Makes one model of the clients' models."""
        return Aggregator(AGGREGATORS.configured(self.config.aggregator, self.config))

    @property
    def teacher(self) -> Teacher:
        """Weighs the experts' votes."""
        return TEACHERS.configured(self.config.teacher, self.config)

    @cached_property
    def caps(self) -> Caps:
        """Bounds what clients say by each other; one for all, so that it is said once whose number counts for less."""
        return Caps(self.config.max_weight, self.config.max_fit)

    def objective(self, prox_mu: float = 0.0) -> LocalObjective:
        """Return what clients minimise; ``prox_mu`` is the method's own where the run leaves it open."""
        return LocalObjective(self.config.local_loss, prox_mu if self.config.prox_mu < 0.0 else self.config.prox_mu)

    @cached_property
    def server(self) -> Server:
        """Task, models, device and seed."""
        return Server(self.data.task, self.main, self.device, self.config.seed)

    def distiller(self, student_share: float = 1.0) -> Distiller:
        """Return what teaches universal experts."""
        return Distiller(
            steps=self.config.distill_steps,
            learning_rate=self.config.distill_learning_rate,
            batch_size=self.config.distill_batch_size,
            temperature=self.config.temperature,
            student_share=student_share,
        )

    def fixed_proxy(self) -> FixedProxy:
        """Return the proxy set of data.

        Raises
        ------
        ConfigError, DataError
            If there is none.
        """
        own = ProxySettings.of(self.config)
        x = load_proxy(self.config, self.data)
        views = min(max(round(own.proxy_samples / len(x)) - 1, 0), MOST_BYTES // x.nbytes)
        return FixedProxy(x, self.data.task, views, own.proxy_shift, self.config.seed)

    def proxy(self) -> ProxySource:
        """Return where proxy sets come from; raise as `fixed_proxy` does."""
        if self.config.proxy == "generator":
            return GeneratedProxy(self._generator(), self.config.seed)
        return self.fixed_proxy()

    @property
    def num_clusters(self) -> int:
        """How many clusters there are for methods that must be told."""
        return self.config.num_clusters or self.config.num_groups

    def agglomerative(self) -> Clusterer:
        """Return the hierarchical clusterer."""
        return CLUSTERERS["agglomerative"](self.config.num_clusters, self.random_state)

    def assigner(self) -> ClusterAssigner[Any]:
        """Return what says who belongs together, as the run's ``clusterer`` has it."""
        return ASSIGNERS[self.config.clusterer].build(self)

    def random_models(self) -> list[State]:
        """Return as many different models as there are clusters."""
        seeds = [derive_seed(self.config.seed, "candidate", number) for number in range(self.num_clusters)]
        shape, num_outputs = self.data.task.shape, self.data.task.num_outputs
        return [get_state(build_model(self.main, shape, num_outputs, seed)) for seed in seeds]

    def _generator(self) -> GeneratorTrainer:
        config, task = self.config, self.data.task
        shape = require_images(config.proxy, task)
        if not task.scores_strata:
            raise ConfigError("proxy: got 'generator'; it draws images of classes and this task has none, use holdout")
        options = GeneratorOptions(
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
            generator = Generator(shape, task.num_strata)
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (task.mean, task.std))
        return GeneratorTrainer(generator, lambda images: (images - mean) / std, options, self.device)


@dataclass(frozen=True)
class AssignerKind:
    """What ``clusterer`` may be.

    Attributes
    ----------
    build : callable
        From the parts of a run to the assigner.
    uses : Uses
    supports : Supports
        Where clients are compared by signatures, the signature has a say, too.
    by_signature : bool
        Clients are compared by their signatures.
    """

    build: Callable[[Parts], ClusterAssigner[Any]]
    uses: Uses = field(default_factory=Uses)
    supports: Supports = field(default_factory=Supports)
    by_signature: bool = False


ASSIGNERS: Registry[AssignerKind] = Registry("clusterer")
"""Every clusterer of signatures, and what other methods have in its place."""


def smallest_cluster(config: StrategyConfig) -> int:
    """Return the fewest clients that a cluster may have."""
    return max(config.min_cluster_size, FEWEST if config.privacy == "secure" else 1)


def _by_signature(clusterer: str, parts: Parts) -> ClusterAssigner[Any]:
    config, seed = parts.config, parts.random_state
    make = CLUSTERERS.configured(clusterer, config)
    clusters = AtLeast(make, config.num_clusters, smallest_cluster(config), seed)
    kind = SIGNATURES[config.signature]
    if config.privacy == "secure":
        kind = of_sketches(kind)
    return BySignature(config.signature, kind, clusters, config.signature_memory, seed)


def by_signature(clusterer: str) -> AssignerKind:
    """Return the kind that clusters signatures by an entry of `CLUSTERERS`."""
    supports = Supports(sums=True, mixed_models=True)
    return AssignerKind(partial(_by_signature, clusterer), supports=supports, by_signature=True)


for _name in CLUSTERERS:
    ASSIGNERS.register(_name)(by_signature(_name))
ASSIGNERS.register("ifca")(
    AssignerKind(
        lambda parts: ByChoice(parts.random_models()),
        Uses(given_number=True, choices=True),
        Supports(uncovered="a client's choice of a model, use another"),
    )
)
ASSIGNERS.register("oracle")(
    AssignerKind(lambda parts: Planted(), Uses(planted_groups=True), Supports(mixed_models=True))
)
