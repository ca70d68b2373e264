"""Every random choice of a run, derived from its one seed and the name of the purpose."""

import hashlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else.

    The same parts give the same seed in every process and on every machine, so that a client draws
    the same numbers in the inline engine, in a Ray actor and on its own machine.

    Examples
    --------
    >>> derive_seed(0, "train", "client-3", 7) == derive_seed(0, "train", "client-3", 7)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator for one purpose, e.g. ``numpy_rng(seed, "sample", round)``."""
    return np.random.default_rng(derive_seed(*parts))


def torch_rng(*parts: int | str) -> torch.Generator:
    """Return a CPU torch generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(*parts))
