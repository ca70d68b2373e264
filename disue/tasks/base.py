"""What training, clustering, averaging and evaluation ask of a task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from disue.tasks.losses import Loss

Shape = tuple[int, ...]
"""Of one input: of an image channels, height and width, of a row of a table its columns."""
ImageShape = tuple[int, int, int]
"""Channels, height and width."""


class Task(ABC):
    """What a model is trained for. Server and clients must agree on it.

    A subclass says what outputs and targets are. All else asks it, and knows neither classes nor quantities.

    Attributes
    ----------
    shape : tuple of int
        Of one input, of any rank.
    mean, std : tuple of float
        Of inputs, one for each index of their first axis; they are normalised by these.
    """

    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_shape(self) -> ImageShape | None:
        """Channels, height and width of inputs that are images; None: they are something else."""
        return None

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers a model gives for an example; the width of its head."""

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """What is minimised."""

    @property
    @abstractmethod
    def loss_unit(self) -> float:
        """The loss of a model that knows nothing of the inputs: what losses are compared with."""

    @property
    @abstractmethod
    def num_strata(self) -> int:
        """Into how many strata examples fall: there is a prototype of each."""

    @abstractmethod
    def strata(self, targets: Tensor) -> Tensor:
        """Return the stratum of each example, (examples,) int64 from 0 to ``num_strata - 1``."""

    @property
    @abstractmethod
    def scores_strata(self) -> bool:
        """Whether outputs are logits of the strata, so that priors and evidence of these can be added to them."""

    @abstractmethod
    def predicted_strata(self, outputs: Tensor) -> Tensor:
        """Return the stratum that outputs speak for, (examples,) int64."""

    @abstractmethod
    def log_prior(self, targets: Tensor) -> Tensor | None:
        """Return what to add to outputs that carry no prior, so that they carry these targets', (outputs,).

        None: there are no priors in such a task.
        """

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` returns, by name; the first is what models are compared by."""

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Return how good outputs are, by the names of the metrics; None: it cannot be said of these examples."""

    @abstractmethod
    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return how far a student's outputs are from its teacher's, a mean over the examples, at least 0.

        Parameters
        ----------
        outputs, teacher : (examples, outputs) tensor
        temperature : float (default: 1.0)
            Softens both where they are distributions.
        """

    def count_strata(self, targets: Tensor) -> Tensor:
        """Return the examples in each stratum, (strata,) float32."""
        return torch.bincount(self.strata(targets), minlength=self.num_strata).to(torch.float32)

    def to_settings(self) -> dict[str, object]:
        """Return what a run directory keeps of the task: texts, numbers and lists of these, by key."""
        return {"input-shape": "x".join(map(str, self.shape)), "mean": list(self.mean), "std": list(self.std)}

    def normalise(self, inputs: Tensor) -> Tensor:
        """Return inputs, (examples, *shape), with about zero mean and unit variance."""
        mean, std = (torch.tensor(values).view(-1, *[1] * (len(self.shape) - 1)) for values in (self.mean, self.std))
        return (inputs - mean) / std

    def augmented(self, inputs: Tensor, amount: float, generator: torch.Generator) -> Tensor | None:
        """Return other inputs that are like these, (examples, *shape); None, as here: the task knows none.

        Parameters
        ----------
        inputs : (examples, *shape) tensor
        amount : float
            How unlike they may be, above 0 and up to 1.
        generator : torch.Generator
            On the CPU.
        """
        return None

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Return normalised inputs of nothing in particular, (count, *shape)."""
        return torch.randn(count, *self.shape, generator=generator)


def check_moments(mean: Sequence[float], std: Sequence[float], count: int, what: str) -> None:
    """Raise `ValueError` unless these are as many means and deviations, finite, and deviations above 0."""
    if not len(mean) == len(std) == count:
        raise ValueError(f"there are {len(mean)} means and {len(std)} deviations of {what}; expected {count} of each")
    if not all(math.isfinite(value) for value in (*mean, *std)) or not all(value > 0.0 for value in std):
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} are not those of {what}")
