"""Images in classes: the shape of an image, and how its pixels are normalised."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from disue.tasks.base import ImageShape, check_moments
from disue.tasks.classification import Classification, checked_class_names

SMALLEST_SIDE = 4
"""Of an image: the networks halve it twice."""
LARGEST_SIDE = 2048


@dataclass(frozen=True)
class ImageClassification(Classification):
    """Images in classes.

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
    shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", checked_class_names(self.class_names))
        channels, *sides = self.shape if len(self.shape) == 3 else (0,)
        if channels not in (1, 3) or not all(1 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError(f"the shape is {self.shape}; expected 1 or 3 channels and sides of at most {LARGEST_SIDE}")
        check_moments(self.mean, self.std, channels, "pixels")

    @property
    def image_shape(self) -> ImageShape:
        """The shape of an input."""
        return self.shape

    def augmented(self, inputs: Tensor, amount: float, generator: torch.Generator) -> Tensor:
        """Return images that are shifted by up to this share of their sides, parts of pixels included.

        Bicubic between the pixels; their edges fill what becomes free.
        """
        moves = torch.eye(2, 3).repeat(len(inputs), 1, 1)
        moves[:, :, 2] = 2.0 * amount * (2.0 * torch.rand(len(inputs), 2, generator=generator) - 1.0)
        places = F.affine_grid(moves.to(inputs.device), list(inputs.shape), align_corners=False)
        return F.grid_sample(inputs, places, mode="bicubic", padding_mode="border", align_corners=False)
