"""The data of one client, as its models take them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch

from disue.data.datasets import Examples

MIN_TRAIN_EXAMPLES = 2
MIN_TEST_EXAMPLES = 1


@dataclass(frozen=True)
class ClientData:
    """One client's own data, normalised, and the planted group it comes from (-1: none)."""

    train: Examples
    test: Examples
    group: int

    @property
    def nbytes(self) -> int:
        """What they take in memory, in bytes."""
        return sum(tensor.nbytes for part in (self.train, self.test) for tensor in (part.x, part.y))

    @cached_property
    def train_hash(self) -> bytes:
        """The SHA-256 of the training examples, in their order."""
        found = hashlib.sha256()
        for tensor in (self.train.x, self.train.y):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.digest()
