"""What leaves a client, by the run config key ``privacy``; docs/PRIVACY.md has the table.

With ``dp`` everything that the client's data decide is clipped and made noisy here, before it leaves (the Gaussian
mechanism, Dwork & Roth 2014, appendix A; of whole clients, as in McMahan et al. 2018, but at the client: local).
With ``secure`` sketches leave, and what else the method needs stays here until it is hidden in a sum.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from logging import ERROR
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.common.logger import log
from torch import Tensor
from torch.nn import functional as F

from client_app.budget import Budget
from client_app.secure import keep
from client_app.signature import make_signature
from disue.comparing import FROM_UPDATE, Trained
from disue.config import RunConfig
from disue.data import Examples
from disue.errors import ConfigError, FederationError
from disue.metrics import predict_logits
from disue.models import Classifier, State, flatten, subtract
from disue.nodes import NodeConfig
from disue.privacy import COVERED_DESCRIPTIONS, FITS_UP_TO
from disue.secure import Contribution
from disue.seeding import torch_rng
from disue.signature import Signature
from disue.sketch import sketch
from disue.task import DataSummary, require_known
from disue.wire import CompareReply, EvaluateReply, HelloReply, KeptReply, TrainReply

T = TypeVar("T")
Answer = Callable[[Message, Context], Message]
Draw = Callable[[int], Tensor]
"""From how many to independent standard normal numbers, float64."""

USUAL_PIXELS = (0.5, 0.25)
"""Mean and deviation that stand for those of a client's own pixels, which it does not tell."""
NOISE_IMAGES = 64
LONGEST_PROTOTYPE = 2.0
"""In mean lengths of the features of images of noise."""
STEPS_OF_ACCURACY = (20, 10, 5, 2, 1)
"""Into how many steps accuracies are rounded; the most that the client has test examples for."""
DIGITS_OF_LOSS = 2


def seeded(*parts: int | str) -> Draw:
    """Return a source that gives the same numbers for the same parts."""
    generator = torch_rng(*parts)
    return lambda size: torch.randn(size, generator=generator, dtype=torch.float64)


def from_the_system(size: int) -> Tensor:
    """Return standard normal numbers made of the operating system's random bits, 52 for each."""
    bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(12)
    numbers: Tensor = torch.special.ndtri(torch.from_numpy((bits + 0.5) * 2.0**-52))
    return numbers


def release(vector: Tensor, bound: float, noise: float, draw: Draw) -> Tensor:
    """Return a vector, shortened to ``bound``, plus Gaussian noise of deviation ``noise * bound``, float64.

    One with a value that is not finite counts as zero.
    """
    vector = vector.double()
    length = float(vector.norm())
    if not math.isfinite(length):
        vector = torch.zeros_like(vector)
    elif length > bound:
        vector = vector * (bound / length)
    return vector + noise * bound * draw(vector.numel())


def on_grid(share: float, examples: int) -> float:
    """Return a share of so many examples, rounded to steps that are no finer than one example.

    Every step is the rounded value of some share then, whatever their number: which steps occur does not tell it.

    Examples
    --------
    >>> on_grid(4 / 7, 7), on_grid(301 / 777, 777)
    (0.6, 0.4)
    """
    steps = next(steps for steps in STEPS_OF_ACCURACY if steps <= examples)
    right = round(share * examples)
    return (2 * steps * right + examples) // (2 * examples) / steps


class Plain:
    """All leaves as it is, or with ``share-label-counts=false`` all but the label counts.

    Parameters
    ----------
    config : RunConfig
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def hello(self, reply: HelloReply) -> HelloReply:
        """Return what is said of who this is."""
        return reply

    def description(self, name: str, description: Tensor) -> Tensor:
        """Return what is said of the data before training."""
        return description

    def signature(self, universal: Classifier, examples: Examples, device: torch.device) -> Signature:
        """Return what is said of the data beside an update."""
        return make_signature(universal, examples, device, self.config.share_label_counts)

    def candidates(self, candidates: Sequence[State]) -> Sequence[State]:
        """Return the candidates of which the choice is told."""
        return candidates

    def training(self, reply: TrainReply, start: State) -> TrainReply | KeptReply:
        """Return the trained model and its numbers."""
        return reply

    def evaluation(self, reply: EvaluateReply, num_classes: int) -> EvaluateReply:
        """Return the accuracies."""
        return reply

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Return how well both models fit."""
        return reply


class Private(Plain):
    """Everything that the data decide is released with noise, or does not leave.

    The numbers of examples, from which those of steps follow, are taken to be public.

    Parameters
    ----------
    config : RunConfig
        ``dp-clip``, ``dp-noise``.
    draw : callable
        Where the noise comes from.
    budget : Budget, optional
        What the node allows; all there is if there is none.
    """

    def __init__(self, config: RunConfig, draw: Draw, budget: Budget | None = None) -> None:
        super().__init__(config)
        self.draw = draw
        self.budget = budget

    def hello(self, reply: HelloReply) -> HelloReply:
        """Say nothing of data that are the client's own but how many there are.

        Raises
        ------
        ConfigError
            If all that the run may ask for comes to more than the node allows.
        """
        if self.budget:
            self.budget.check_plan()
        return replace(reply, summary=_usual(reply.summary, self.config))

    def description(self, name: str, description: Tensor) -> Tensor:
        """Release a description of unit length.

        Raises
        ------
        ConfigError
            If it has another length.
        """
        if name not in COVERED_DESCRIPTIONS:
            raise ConfigError(f"privacy: 'dp' does not cover the description '{name}'")
        noisy = self._released(description.flatten()).view_as(description)
        return F.normalize(noisy.flatten(), dim=0).view_as(description).float()

    def signature(self, universal: Classifier, examples: Examples, device: torch.device) -> Signature:
        """Release label shares and prototypes together; a class with little share after that is not there."""
        exact = make_signature(universal, examples, device)
        bound = _usual_length(universal, examples.x.shape[1:], device) * LONGEST_PROTOTYPE
        shares = exact.label_counts / exact.label_counts.sum()
        lengths = exact.prototypes.norm(dim=1, keepdim=True)
        points = exact.prototypes / lengths.clamp(min=bound)
        # Both parts are at most of unit length: shares add up to one, and the points are no longer than that.
        both = torch.cat([shares, (points * shares.sqrt().unsqueeze(1)).flatten()])
        noisy = self._released(both / math.sqrt(2.0)) * math.sqrt(2.0)
        told = _present(noisy[: len(shares)])
        scaled = noisy[len(shares) :].view_as(points) * bound
        prototypes = torch.where(told.unsqueeze(1) > 0, scaled / told.clamp(min=1e-12).sqrt().unsqueeze(1), 0.0)
        counts = _counts(told, len(examples)) if self.config.share_label_counts else (told > 0).double()
        return Signature(counts.float(), prototypes.float())

    def candidates(self, candidates: Sequence[State]) -> Sequence[State]:
        """Raise `ConfigError` if there is a choice."""
        if candidates:
            raise ConfigError("privacy: 'dp' does not cover the choice of a model")
        return candidates

    def training(self, reply: TrainReply, start: State) -> TrainReply:
        """Release the update; its loss does not leave."""
        update = flatten([tensor.double() for tensor in subtract(reply.state, start).values()])
        noisy = self._released(update, self.config.dp_clip)
        parts = noisy.split([tensor.numel() for tensor in start.values()])
        state = {
            name: (tensor.double() + part.view_as(tensor)).to(tensor.dtype)
            for part, (name, tensor) in zip(parts, start.items(), strict=True)
        }
        return replace(reply, state=state, train_loss=None)

    def evaluation(self, reply: EvaluateReply, num_classes: int) -> EvaluateReply:
        """Release the accuracies, and how well the models fit, together; the loss on the test data does not leave."""
        unit = FITS_UP_TO * math.log(num_classes)
        units = {"universal_accuracy": 1.0, "expert_accuracy": 1.0, "personal_accuracy": 1.0}
        units |= {"universal_fit": unit, "expert_fit": unit}
        asked = {name: unit for name, unit in units.items() if getattr(reply, name) is not None}
        values = torch.tensor([getattr(reply, name) / unit for name, unit in asked.items()], dtype=torch.float64)
        side = math.sqrt(len(values))  # of the cube in which they are, from corner to corner of the unit ball
        noisy = (self._released((2.0 * values.clamp(0.0, 1.0) - 1.0) / side) * side + 1.0) / 2.0
        released = dict(zip(asked, noisy.clamp(0.0, 1.0).tolist(), strict=True))
        told = {name: value * asked[name] for name, value in released.items()}
        return replace(reply, universal_loss=None, **told)

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Raise `FederationError`: the server is not to ask."""
        raise FederationError("privacy=dp: a client does not compare models")

    def _released(self, vector: Tensor, bound: float = 1.0) -> Tensor:
        if self.budget:
            self.budget.spend()
        return release(vector, bound, self.config.dp_noise, self.draw)


class Hidden(Plain):
    """The server gets sketches to cluster by; numbers, prototypes and updates are hidden in the sums of clusters.

    Parameters
    ----------
    config : RunConfig
        ``sketch-size``, ``sketch-noise``, and by what clients are compared.
    draw : callable
        Where the noise in sketches comes from.
    name : str
        The client's.
    server_round : int
    context : Context or None
        Keeps what is hidden.
    """

    def __init__(self, config: RunConfig, draw: Draw, name: str, server_round: int, context: Context | None) -> None:
        super().__init__(config)
        self.draw = draw
        self.name = name
        self.server_round = server_round
        self.context = context

    def hello(self, reply: HelloReply) -> HelloReply:
        """Say nothing of data that are the client's own, nor how many there are."""
        return replace(reply, num_examples=0, summary=_usual(reply.summary, self.config))

    def description(self, name: str, description: Tensor) -> Tensor:
        """Return a sketch of what is said of the data."""
        return self._sketch(description)

    def training(self, reply: TrainReply, start: State) -> KeptReply:
        """Keep the model and its numbers; a sketch is all that leaves, where clients are compared by their updates."""
        assert reply.train_loss is not None
        assert self.context is not None
        own = Contribution(reply.num_examples, reply.train_loss, reply.steps, reply.state, reply.signature)
        keys = keep(own.to_vector(), self.server_round, self.context)
        from_update = FROM_UPDATE.get(self.config.signature) if self.config.method == "disue" else None
        if from_update is None:
            return KeptReply(keys)
        return KeptReply(keys, self._sketch(from_update(Trained(self.name, start, reply.state, reply.signature))))

    def evaluation(self, reply: EvaluateReply, num_classes: int) -> EvaluateReply:
        """Return the accuracies and losses, rounded: exact accuracies would show how many test examples there are."""
        told: dict[str, float] = {}
        for name in ("universal_accuracy", "expert_accuracy", "personal_accuracy"):
            if (accuracy := getattr(reply, name)) is not None:
                told[name] = on_grid(accuracy, reply.num_examples)
        for name in ("universal_loss", "universal_fit", "expert_fit"):
            if (loss := getattr(reply, name)) is not None:
                told[name] = round(loss, DIGITS_OF_LOSS)
        return replace(reply, num_examples=1, personal_steps=0, **told)

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Return how well both models fit, rounded."""
        return CompareReply(round(reply.student_fit, DIGITS_OF_LOSS), round(reply.average_fit, DIGITS_OF_LOSS))

    def _sketch(self, vector: Tensor) -> Tensor:
        size, noise = self.config.sketch_size, self.config.sketch_noise
        exact = sketch(vector, size, self.config.seed)
        if noise == 0.0:
            return exact
        noisy: Tensor = exact + noise * float(vector.norm()) / math.sqrt(size) * self.draw(size)
        return noisy.float()


def _usual(summary: DataSummary | None, config: RunConfig) -> DataSummary | None:
    """Return what stands for what a client would say of data of its own: all classes of the run, and usual pixels."""
    if summary is None:
        return None
    require_known(summary.class_names, config.class_names)
    mean, std = ((value,) * len(summary.mean) for value in USUAL_PIXELS)
    return DataSummary(config.class_names, mean, std)


def _usual_length(model: Classifier, shape: torch.Size, device: torch.device) -> float:
    """Return the mean length of the features of images of noise: whoever has the model knows it."""
    images = torch.randn(NOISE_IMAGES, *shape, generator=torch_rng("images of noise"))
    return float(predict_logits(model.body, images, device).norm(dim=1).mean())


def _present(shares: Tensor) -> Tensor:
    """Return noisy shares, (classes,), as shares; those below half of an equal share are zero, but for the largest."""
    kept = shares.clamp(min=0.0) * (shares >= 0.5 / len(shares))
    if not bool(kept.sum() > 0):
        return F.one_hot(shares.argmax(), len(shares)).to(shares)
    return kept / kept.sum()


def _counts(shares: Tensor, total: int) -> Tensor:
    """Return whole numbers, in about these shares, that add up to no more than the total."""
    counts = (shares * total).floor()
    return counts if bool(counts.sum() > 0) else F.one_hot(shares.argmax(), len(shares)).to(shares)


def discretion(
    config: RunConfig, node: NodeConfig, purpose: str, server_round: int = 0, context: Context | None = None
) -> Plain:
    """Return what decides what leaves.

    A client with data of its own takes noise from the operating system, whatever the run config says. In a simulation,
    where nobody is protected, it comes from the run seed.

    Parameters
    ----------
    config : RunConfig
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
        return Plain(config)
    own = node.data_path is not None
    draw = from_the_system if own else seeded(config.seed, config.privacy, purpose, node.client, server_round)
    if config.privacy == "secure":
        most = node.max_sketch_size
        if most is not None and config.sketch_size > most:
            raise ConfigError(
                f"sketch-size: got {config.sketch_size}; '{node.client}' has max-sketch-size={most}, use at most that"
            )
        return Hidden(config, draw, node.client, server_round, context)
    return Private(config, draw, Budget(config, node, context))


def discreet(answer: Callable[[Message, Context], T]) -> Callable[[Message, Context], T]:
    """With ``privacy=dp``, keep what went wrong in the client's own log; what the config alone decides is told."""

    @wraps(answer)
    def guarded(message: Message, context: Context) -> T:
        try:
            return answer(message, context)
        except (ConfigError, FederationError):
            raise
        except Exception as error:
            if context.run_config.get("privacy") != "dp":
                raise
            log(ERROR, "%s: %s", type(error).__name__, error, exc_info=True)
            raise FederationError("the client failed; privacy=dp: what went wrong is in its own log") from None

    return guarded
