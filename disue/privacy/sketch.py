"""Sketches: what a client is compared by, in so few dimensions that it cannot be told from them what that was.

Johnson and Lindenstrauss, 1984: a random projection keeps inner products up to about 1/sqrt(dimension), and the server
needs no more than these. All clients of a run have the same projection, which the run seed gives.
"""

import math

import torch
from torch import Tensor

from disue.seeding import torch_rng

BLOCK = 2**16
"""Entries of a vector that are projected at a time, so that the projection is never in memory as a whole."""


def sketch(vector: Tensor, dimension: int, seed: int) -> Tensor:
    """Return a random projection of a vector of any shape, (1, dimension) float32.

    Parameters
    ----------
    vector : tensor
    dimension : int
    seed : int
        The run seed.
    """
    flat = vector.reshape(-1).float()
    rng = torch_rng(seed, "sketch")
    projected = torch.zeros(dimension)
    for block in flat.split(BLOCK):
        projected += torch.randn(dimension, len(block), generator=rng) @ block
    return (projected / math.sqrt(dimension)).unsqueeze(0)
