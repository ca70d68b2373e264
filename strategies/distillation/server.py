"""What distilling methods share: the task, the server's own models and device, proxy sets, and the round's lesson."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from logging import WARNING
from typing import Protocol

import torch
from flwr.common.logger import log
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from disue.early import early_features
from disue.metrics import predict_logits
from disue.models import HEAD, Classifier, State, build_model, fill, get_state, same_model
from disue.seeding import torch_rng
from disue.tasks import Task
from strategies.distillation.distiller import Distiller
from strategies.distillation.generator import Experts, GeneratorState, GeneratorTrainer, Network

SHEET_COLUMNS = 8


@dataclass(frozen=True)
class ProxySet:
    """Inputs, (samples, *shape), and their strata where these are known.

    ``views``: augmented copies of all of them (`Task.augmented`), in the same order.
    """

    x: Tensor
    labels: Tensor | None = None
    views: tuple[Tensor, ...] = ()

    @cached_property
    def seen(self) -> Tensor:
        """The inputs, and then their views."""
        return torch.cat([self.x, *self.views]) if self.views else self.x


@dataclass(frozen=True)
class Drawn:
    """A proxy set, and what it took.

    Attributes
    ----------
    proxy : ProxySet
    memory : GeneratorState or None
        What the source remembers.
    metrics : mapping of str to float
    sheet : (rows, columns, channels, height, width) tensor, optional
        Samples for the eye, pixels in 0..1.
    """

    proxy: ProxySet
    memory: GeneratorState | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sheet: Tensor | None = None


class ProxySource(Protocol):
    """Where the proxy set of a round comes from."""

    def inputs(self, memory: GeneratorState | None, server_round: int) -> Tensor | None:
        """Return inputs on which a round's feature spaces can be compared, (samples, *shape); None: there are none."""

    def draw(self, memory: GeneratorState | None, experts: Experts, server_round: int) -> Drawn:
        """Return the proxy set of a round; ``memory``: as it was returned last, or None."""


@dataclass(frozen=True)
class FixedProxy:
    """The same inputs in every round, and views of them that are new in each.

    Parameters
    ----------
    x : (samples, *shape) tensor
    task : Task, optional
        Makes views; None: there are none.
    views : int (default: 0)
        Of all samples in a round.
    shift : float (default: 0.0)
        See `Task.augmented`.
    seed : int (default: 0)
        The run seed.
    """

    x: Tensor
    task: Task | None = None
    views: int = 0
    shift: float = 0.0
    seed: int = 0

    def inputs(self, memory: GeneratorState | None, server_round: int) -> Tensor:
        """Return them."""
        return self.x

    def draw(self, memory: GeneratorState | None, experts: Experts, server_round: int) -> Drawn:
        """Return them, and their views."""
        return Drawn(self.seen(server_round))

    def seen(self, server_round: int) -> ProxySet:
        """Return them, and their views in a round."""
        if self.task is None or not self.shift:
            return ProxySet(self.x)
        drawn = (torch_rng(self.seed, "view", server_round, i) for i in range(self.views))
        views = [self.task.augmented(self.x, self.shift, generator) for generator in drawn]
        return ProxySet(self.x, views=tuple(view for view in views if view is not None))


class GeneratedProxy:
    """Samples of a generator that learns from the experts, a fresh set in every round.

    Parameters
    ----------
    trainer : GeneratorTrainer
    seed : int
        The run seed.
    """

    def __init__(self, trainer: GeneratorTrainer, seed: int) -> None:
        self.trainer = trainer
        self.seed = seed
        self._first = trainer.state

    def inputs(self, memory: GeneratorState | None, server_round: int) -> Tensor | None:
        """Return samples of the generator as it was last."""
        if memory is None:
            return None
        self.trainer.state = memory
        every_class = torch.ones(1, self.trainer.generator.num_classes)
        return self.trainer.sample(every_class, torch_rng(self.seed, "spaces", server_round))[0]

    def draw(self, memory: GeneratorState | None, experts: Experts, server_round: int) -> Drawn:
        """Train the generator, and draw a proxy set and a sheet of samples for the eye."""
        self.trainer.state = memory or self._first
        rng = torch_rng(self.seed, "generator", server_round)
        metrics = self.trainer.train(experts, rng)
        sheet = self.trainer.sheet(SHEET_COLUMNS, torch_rng(self.seed, "sheet"))
        proxy = ProxySet(*self.trainer.sample(experts.label_counts, rng))
        return Drawn(proxy, self.trainer.state, metrics, sheet)


class Server:
    """What the server computes with: the task, models to fill, the device, the run seed.

    Parameters
    ----------
    task : Task
    main : str
        The run's own architecture, which is meant where none is named.
    device : torch.device
    seed : int
        The run seed.
    """

    def __init__(self, task: Task, main: str, device: torch.device, seed: int) -> None:
        self.task = task
        self.main = main
        self.device = device
        self.seed = seed
        self._models: dict[str, Classifier] = {}
        self._initial: dict[str, State] = {}
        self._features = WeakTensorKeyDictionary()
        self._early = WeakTensorKeyDictionary()
        self._some = WeakTensorKeyDictionary()

    def build(self, model: str) -> Classifier:
        """Return a model of an architecture, with what it starts from."""
        return build_model(model, self.task.shape, self.task.num_outputs, self.seed)

    def initial(self, model: str) -> State:
        """Return what an architecture starts from."""
        if model not in self._initial:
            self._initial[model] = get_state(self.build(model))
        return self._initial[model]

    def network(self, state: State, model: str = "") -> Network:
        """Return a model to be called with these parameters."""
        return Network(self._model(model or self.main), state)

    def logits(self, state: State, x: Tensor, model: str = "") -> Tensor:
        """Return what a model says of inputs, (samples, outputs)."""
        return F.linear(self.features(state, x, model), state[f"{HEAD}weight"], state.get(f"{HEAD}bias"))

    def features(self, state: State, x: Tensor, model: str = "") -> Tensor:
        """Return the features of inputs under a model, (samples, features).

        They are kept as long as the body's tensors: models that differ in their heads alone have the same.
        """
        of = [x, *(tensor for name, tensor in state.items() if not name.startswith(HEAD))]
        kept = self._features.get(of[-1])
        if kept is None or any(ref() is not tensor for ref, tensor in zip(kept[0], of, strict=True)):
            found = predict_logits(self._filled(state, model).body, x, self.device)
            self._features[of[-1]] = [weakref.ref(tensor) for tensor in of], found
            return found
        features: Tensor = kept[1]
        return features

    def some_of(self, x: Tensor, most: int) -> Tensor:
        """Return at most so many of inputs, evenly spread; the same tensor each time, so that features are kept."""
        if x not in self._some or len(self._some[x]) != min(len(x), most):
            self._some[x] = x[torch.linspace(0, len(x) - 1, min(len(x), most)).long()]
        found: Tensor = self._some[x]
        return found

    def early_features(self, x: Tensor, most: int) -> Tensor:
        """Return early features of inputs, (samples, at most ``most``); they are kept as long as the tensor is."""
        if x not in self._early or self._early[x][0] != most:
            initial = self._filled(self.initial(self.main), self.main)
            self._early[x] = most, early_features(initial, x, self.device, most)
        found: Tensor = self._early[x][1]
        return found

    def distil(
        self,
        distiller: Distiller,
        average: State,
        proxy: ProxySet,
        targets: Tensor,
        server_round: int,
        model: str = "",
        evidence: Tensor | None = None,
        guarded: bool = True,
    ) -> tuple[State, dict[str, float | int]]:
        """Teach the average the targets, (samples, outputs), and log where the guard kept it.

        Returns the model, or the student itself where it is not ``guarded``, and the metrics: ``guard_kept_average``
        and ``distill_steps`` are to be added up over the architectures, and the others of one that is not the run's own
        bear its name. A student that is the average counts as kept. There is no evidence where the task has but one
        stratum.
        ``evidence``: (samples,) strata that the guard believes in, if not the teacher's.
        """
        generator = torch_rng(self.seed, "distil", server_round)
        result = distiller.distil(
            self.task,
            self._filled(average, model),
            proxy.seen,
            targets,
            generator,
            self.device,
            evidence,
            len(proxy.views),
        )
        name = model or self.main
        kept = result.kept_average if guarded else same_model(result.student, average)
        if kept:
            what = "round %s: the guard kept the average of %s, the student was not better"
            log(WARNING, what, server_round, name)
        suffix = "" if name == self.main else f"_{name}"
        metrics = {
            "guard_kept_average": int(kept),
            "distill_steps": result.steps,
            f"divergence_average{suffix}": result.average_loss,
            f"divergence_student{suffix}": result.student_loss,
        }
        if self.task.num_strata > 1:
            metrics[f"evidence_average{suffix}"] = result.average_evidence
            metrics[f"evidence_universal{suffix}"] = result.result_evidence
        return result.state if guarded else result.student, metrics

    def _model(self, name: str) -> Classifier:
        if name not in self._models:
            self._models[name] = self.build(name)
        return self._models[name]

    def _filled(self, state: State, model: str) -> Classifier:
        """Return the model with these parameters; it is the same object every time."""
        filled = self._model(model or self.main)
        fill(filled, state)
        return filled
