"""Images in classes: the shape of an image, and how its pixels are normalised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disue.tasks.classification import checked_class_names, require_known

Shape = tuple[int, int, int]
"""Channels, height and width of one input."""

SMALLEST_SIDE = 4
"""Of an image: the networks halve it twice."""
LARGEST_SIDE = 2048


@dataclass(frozen=True)
class Task:
    """What server and clients must agree on to train one model.

    Attributes
    ----------
    class_names : tuple of str
        In the order of the model's outputs.
    shape : tuple of int
        Channels, height and width of one input.
    mean, std : tuple of float
        Per channel, of pixels in 0..1.

    Raises
    ------
    ValueError
        If these are no classes, no shape of images, or numbers that cannot be those of pixels.
    """

    class_names: tuple[str, ...]
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", checked_class_names(self.class_names))
        channels, *sides = self.shape if len(self.shape) == 3 else (0,)
        if channels not in (1, 3) or not all(1 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError(f"the shape is {self.shape}; expected 1 or 3 channels and sides of at most {LARGEST_SIDE}")
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(f"mean and std have {len(self.mean)} and {len(self.std)} channels, not {channels}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0.0:
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of pixels")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels in 0..1, (examples, channels, height, width), with about zero mean and unit variance."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def indices(self, class_names: Sequence[str]) -> Tensor:
        """Return the outputs that belong to these classes, (classes,) int64.

        Raises
        ------
        DataError
            If the task does not have one of them.
        """
        require_known(class_names, self.class_names)
        return torch.tensor([self.class_names.index(name) for name in class_names], dtype=torch.int64)
