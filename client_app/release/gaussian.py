"""The Gaussian mechanism, and where its noise comes from (Dwork & Roth 2014, appendix A)."""

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from disue.seeding import torch_rng

Draw = Callable[[int], Tensor]
"""From how many to independent standard normal numbers, float64."""


def seeded(*parts: int | str) -> Draw:
    """Return a source that gives the same numbers for the same parts."""
    generator = torch_rng(*parts)
    return lambda size: torch.randn(size, generator=generator, dtype=torch.float64)


def from_the_system(size: int) -> Tensor:
    """Return standard normal numbers made of the operating system's random bits, 52 for each."""
    bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(12)
    numbers: Tensor = torch.special.ndtri(torch.from_numpy((bits + 0.5) * 2.0**-52))
    return numbers


def gaussian_mechanism(vector: Tensor, bound: float, noise: float, draw: Draw) -> Tensor:
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
