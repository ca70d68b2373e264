"""What distilling methods share: the server's own models and device, proxy sets, and the round's lesson."""

from collections.abc import Callable
from dataclasses import dataclass
from logging import WARNING
from typing import ClassVar, Protocol

import torch
from flwr.common.logger import log
from torch import Tensor

from disue.metrics import predict_logits
from disue.models import Classifier, State, fill, get_state
from disue.seeding import torch_rng
from strategies.distillation.distiller import Distiller
from strategies.distillation.generator import Experts, GeneratorTrainer, Network
from strategies.rounds.stats import RoundStats

SHEET_COLUMNS = 8


@dataclass(frozen=True)
class ProxySet:
    """Inputs, (samples, channels, height, width), and their classes where these are known."""

    x: Tensor
    labels: Tensor | None = None


class ProxySource(Protocol):
    """Where the proxy set of a round comes from; ``stateful``: see `FederatedStrategy`."""

    stateful: ClassVar[tuple[str, ...]]

    def draw(self, experts: Experts, outcome: RoundStats) -> ProxySet:
        """Return the proxy set, and note in ``outcome`` what it took."""


@dataclass(frozen=True)
class FixedProxy:
    """The same inputs in every round."""

    stateful: ClassVar[tuple[str, ...]] = ()
    x: Tensor

    def draw(self, experts: Experts, outcome: RoundStats) -> ProxySet:
        """Return them."""
        return ProxySet(self.x)


@dataclass(frozen=True)
class GeneratedProxy:
    """Samples of a generator that learns from the experts, a fresh set in every round.

    Parameters
    ----------
    trainer : GeneratorTrainer
    seed : int
        The run seed.
    """

    stateful: ClassVar[tuple[str, ...]] = ("trainer",)
    trainer: GeneratorTrainer
    seed: int

    def draw(self, experts: Experts, outcome: RoundStats) -> ProxySet:
        """Train the generator, and draw a proxy set and a sheet of samples for the eye."""
        rng = torch_rng(self.seed, "generator", outcome.server_round)
        outcome.extra |= self.trainer.train(experts, rng)
        outcome.sheet = self.trainer.sheet(SHEET_COLUMNS, torch_rng(self.seed, "sheet"))
        return ProxySet(*self.trainer.sample(experts.label_counts, rng))


class Server:
    """What the server computes with: models to fill, the device, the run seed.

    Parameters
    ----------
    build : callable
        From the name of an architecture to its initial model.
    main : str
        The run's own architecture, which is meant where none is named.
    device : torch.device
    seed : int
        The run seed.
    """

    def __init__(self, build: Callable[[str], Classifier], main: str, device: torch.device, seed: int) -> None:
        self.build = build
        self.main = main
        self.device = device
        self.seed = seed
        self._models: dict[str, Classifier] = {}

    def initial(self, model: str) -> State:
        """Return what an architecture starts from."""
        return get_state(self.build(model))

    def network(self, state: State, model: str = "") -> Network:
        """Return a model to be called with these parameters."""
        return Network(self._model(model or self.main), state)

    def logits(self, state: State, x: Tensor, model: str = "") -> Tensor:
        """Return what a model says of inputs, (samples, classes)."""
        return predict_logits(self._filled(state, model), x, self.device)

    def features(self, state: State, x: Tensor, model: str = "") -> Tensor:
        """Return the features of inputs under a model, (samples, features)."""
        return predict_logits(self._filled(state, model).body, x, self.device)

    def distil(
        self,
        distiller: Distiller,
        average: State,
        x: Tensor,
        targets: Tensor,
        outcome: RoundStats,
        model: str = "",
        evidence: Tensor | None = None,
    ) -> State:
        """Teach the average the targets, (samples, classes) logits; log and count what the guard did.

        The counts are of all architectures together; the numbers of one that is not the run's own bear its name.
        ``evidence``: (samples,) classes that the guard believes in, if not the teacher's.
        """
        generator = torch_rng(self.seed, "distil", outcome.server_round)
        result = distiller.distil(self._filled(average, model), x, targets, generator, self.device, evidence)
        name = model or self.main
        if result.kept_average:
            what = "round %s: the guard kept the average of %s, the student was not better"
            log(WARNING, what, outcome.server_round, name)
        suffix = "" if name == self.main else f"_{name}"
        counts = {"guard_kept_average": int(result.kept_average), "distill_steps": result.steps}
        outcome.extra |= {key: outcome.extra.get(key, 0) + count for key, count in counts.items()}
        outcome.extra |= {
            f"divergence_average{suffix}": result.average_loss,
            f"divergence_student{suffix}": result.student_loss,
            f"evidence_average{suffix}": result.average_evidence,
            f"evidence_universal{suffix}": result.result_evidence,
        }
        return result.state

    def _model(self, name: str) -> Classifier:
        if name not in self._models:
            self._models[name] = self.build(name)
        return self._models[name]

    def _filled(self, state: State, model: str) -> Classifier:
        """Return the model with these parameters; it is the same object every time."""
        filled = self._model(model or self.main)
        fill(filled, state)
        return filled
