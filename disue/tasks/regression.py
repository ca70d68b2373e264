"""Regression: quantities for each input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from disue.tasks.base import Shape, Task, check_moments
from disue.tasks.losses import Loss, SquaredError

SQUARED_ERROR = SquaredError()


@dataclass(frozen=True)
class Regression(Task):
    """One number or more for each example, (examples, targets) float32 in standard units. All are one stratum.

    Attributes
    ----------
    targets : tuple of str
        In the order of the model's outputs.
    shape : tuple of int
    mean, std : tuple of float
        Of inputs, one for each index of their first axis.
    target_mean, target_std : tuple of float
        Of each target, in its own unit.

    Raises
    ------
    ValueError
        If there is no target, or the numbers cannot be means and deviations.
    """

    targets: tuple[str, ...]
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"the targets are {self.targets}; expected one or more, each once")
        check_moments(self.mean, self.std, self.shape[0], "inputs")
        check_moments(self.target_mean, self.target_std, len(self.targets), "targets")

    @property
    def num_outputs(self) -> int:
        """One for each target."""
        return len(self.targets)

    @property
    def loss(self) -> Loss:
        """The squared error, in standard units."""
        return SQUARED_ERROR

    @property
    def loss_unit(self) -> float:
        """Of the mean: the variance of targets in standard units."""
        return 1.0

    @property
    def num_strata(self) -> int:
        """One for all."""
        return 1

    def strata(self, targets: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros(len(targets), dtype=torch.int64, device=targets.device)

    @property
    def scores_strata(self) -> bool:
        """Outputs are quantities."""
        return False

    def predicted_strata(self, outputs: Tensor) -> Tensor:
        """Return zeros."""
        return self.strata(outputs)

    def log_prior(self, targets: Tensor) -> None:
        """Return None: there are no classes to have shares."""
        return

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The coefficient of determination and the mean absolute error."""
        return ("r2", "mae")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Return the coefficient of determination R2, a mean over the targets, and the mean absolute error.

        The error is in standard units. There is no R2 where a target is the same for all examples.
        """
        outputs, targets = outputs.double(), targets.double()
        errors = outputs - targets
        spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
        r2 = 1.0 - errors.square().sum(dim=0) / spread
        return {"r2": float(r2.mean()) if bool((spread > 0.0).all()) else None, "mae": float(errors.abs().mean())}

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the mean squared difference, in standard units; there is no distribution to soften."""
        return self.loss.mean(outputs, teacher)

    def to_settings(self) -> dict[str, object]:
        """Return the targets, and what they are standardised by, too."""
        own = {
            "targets": list(self.targets),
            "target-mean": list(self.target_mean),
            "target-std": list(self.target_std),
        }
        return {**own, **super().to_settings()}

    def standardise(self, values: Tensor) -> Tensor:
        """Return values in their own units, (examples,) or (examples, targets), as targets in standard units.

        Raises
        ------
        ValueError
            If they are of another shape.
        """
        columns = values.unsqueeze(1) if values.ndim == 1 else values
        if columns.ndim != 2 or columns.shape[1] != self.num_outputs:
            raise ValueError(f"the targets are {tuple(values.shape)}; expected (examples, {self.num_outputs})")
        mean, std = (torch.tensor(own, dtype=torch.float64) for own in (self.target_mean, self.target_std))
        return ((columns.double() - mean) / std).float()

    def restore(self, outputs: Tensor) -> Tensor:
        """Return outputs in the targets' own units, (examples, targets) float32."""
        mean, std = (torch.tensor(own, dtype=torch.float64) for own in (self.target_mean, self.target_std))
        return (outputs.double() * std + mean).float()
