"""CPU seconds and memory that clustering many clients by their signatures takes, and whether planted groups are found.

    python benchmarks/clustering.py

Prints one JSON line. The signatures are made up, in the shape that a LeNet's have, with as many clients in each planted
group. What is measured is what a run does in a round in which all clients are new, one core: comparing them, choosing
the number of clusters and clustering. `ratio` is how many times as long as for 1,000 clients that takes,
`projection_error` and `landmark_agreement` are as in metrics.jsonl, and the peak is that of the whole process, with the
signatures themselves.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import machine
from disue.seeding import torch_rng
from strategies.clustering.assignment import BySignature
from strategies.clustering.estimators import CLUSTERERS, AtLeast
from strategies.clustering.similarity import SIGNATURES

CLASSES, FEATURES, PARAMETERS, INPUTS, DIMENSIONS = 10, 84, 44_000, 784, 3
EXAMPLES = 200
REFERENCE = 1000


def described(groups: int, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return scaled prototypes: a group has some of the classes, a client its own shares of these."""
    means = torch.randn(CLASSES, FEATURES, generator=rng).abs()
    known = torch.rand(groups, CLASSES, generator=rng).argsort(dim=1) < CLASSES // 2

    def draw(group: int) -> Tensor:
        shares = known[group] * (0.2 + torch.rand(CLASSES, generator=rng))
        counts = (EXAMPLES * shares / shares.sum()).round()
        prototypes = means + torch.randn(CLASSES, FEATURES, generator=rng) / counts.clamp(min=1.0).sqrt().unsqueeze(1)
        return F.normalize((counts.sqrt().unsqueeze(1) * prototypes).reshape(-1), dim=0)

    return draw


def updated(size: int, groups: int, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return updates: what all have in common, what a group has, and noise, of the same length each."""
    common, own = torch.randn(size, generator=rng), torch.randn(groups, size, generator=rng)
    return lambda group: F.normalize(common + own[group] + torch.randn(size, generator=rng), dim=0)


def spanned(groups: int, rng: torch.Generator) -> Callable[[int], Tensor]:
    """Return bases of subspaces, near that of the group."""
    own = torch.randn(groups, INPUTS, DIMENSIONS, generator=rng)
    return lambda group: torch.linalg.qr(own[group] + 0.3 * torch.randn(INPUTS, DIMENSIONS, generator=rng)).Q


MAKE: dict[str, Callable[[int, torch.Generator], Callable[[int], Tensor]]] = {
    "initial-prototypes": described,
    "prototypes": described,
    "last-layer": lambda groups, rng: updated(CLASSES * (FEATURES + 1), groups, rng),
    "update": lambda groups, rng: updated(PARAMETERS, groups, rng),
    "subspace": spanned,
}


def measure(signature: str, clusterer: str, clients: int, groups: int, seed: int) -> dict[str, float]:
    """Return CPU seconds, and how good the clustering is."""
    draw = MAKE[signature](groups, torch_rng(seed, "signatures"))
    signatures = {f"client-{i}": draw(i % groups) for i in range(clients)}
    kind = replace(SIGNATURES[signature], from_update=None)
    assigner = BySignature(signature, kind, AtLeast(CLUSTERERS[clusterer], 0, 2, seed), random_state=seed)
    started = time.process_time()
    assigned = assigner.assign(assigner.begin(), [], signatures, {}, {})
    seconds = time.process_time() - started
    planted = {f"client-{i}": i % groups for i in range(clients)}
    ari = adjusted_rand_score([planted[name] for name in assigned.clusters], list(assigned.clusters.values()))
    return {"seconds": seconds, "ari": ari, **assigned.metrics}


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--groups", type=int, default=5, help="planted; default: %(default)s")
    parser.add_argument("--signature", choices=MAKE, default="initial-prototypes", help="default: %(default)s")
    parser.add_argument("--clusterer", choices=CLUSTERERS, default="agglomerative", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = (arguments.groups, arguments.seed)
    reference = measure(arguments.signature, arguments.clusterer, REFERENCE, *settings)
    told = measure(arguments.signature, arguments.clusterer, arguments.clients, *settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    print(
        json.dumps(
            {
                "benchmark": "clustering",
                **vars(arguments),
                **{key: round(value, 5) for key, value in told.items()},
                "ratio": round(told["seconds"] / reference["seconds"], 2),
                "peak_megabytes": peak // 1024,
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
