"""What a sketch gives away of a client's label shares, and whether clients are still told apart by it.

    python benchmarks/sketches.py

The server that is played here knows the run's initial model, the projection, and images of each class of the same
dataset that no client has. It fits label shares to each client's sketch, and is off by the total variation distance
between these and the true ones, on the mean. ``none`` is a server without sketches, which takes the mean of all
clients' shares for each client's. Clusters are compared, by the adjusted Rand index, with those of the descriptions
themselves. Prints a table in Markdown.
"""

import argparse
import math
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import seeds
from client_app.describe import initial_prototypes, make_signature
from disue.data import Examples, Federation, build_federation
from disue.models import build_model
from disue.privacy.sketch import sketch
from disue.seeding import torch_rng
from server_app.config import RunConfig
from strategies.clustering.estimators import CLUSTERERS, AtLeast
from strategies.clustering.similarity import cosines, embed

CPU = torch.device("cpu")
CLIENTS = {"fashion-mnist": 20, "digits": 9}
SCENARIOS = ("label-groups", "rotation")
STEPS, STARTS = 300, 4


def fitted_shares(sketches: Tensor, class_means: Tensor, project: Tensor, seed: int) -> Tensor:
    """Return the label shares, (clients, classes), whose descriptions have sketches nearest to those given.

    Parameters
    ----------
    sketches : (clients, dimension) tensor
    class_means : (classes, features) tensor
        Of public images.
    project : (classes * (features + 1), dimension) tensor
    seed : int
        Of the starts, of which each client's best is taken.
    """
    clients, classes = len(sketches), len(class_means)
    rng = torch_rng(seed, "fit")
    logits = (3.0 * torch.randn(STARTS, clients, classes, generator=rng)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(STEPS):
        errors = (described(logits.softmax(dim=-1), class_means) @ project - sketches).square().sum(dim=-1)
        optimizer.zero_grad()
        errors.sum().backward()
        optimizer.step()
    best = errors.argmin(dim=0)
    return logits.detach().softmax(dim=-1)[best, torch.arange(clients)]


def described(shares: Tensor, class_means: Tensor) -> Tensor:
    """Return what clients with these label shares, (..., classes), would tell: `initial_prototypes`, flattened."""
    roots = shares.sqrt().unsqueeze(-1)
    points = roots * (class_means - (shares @ class_means).unsqueeze(-2))
    scaled = F.normalize(points.flatten(start_dim=-2), dim=-1).view_as(points)
    return torch.cat([scaled, roots], dim=-1).flatten(start_dim=-2) / math.sqrt(2.0)


def clusters(vectors: list[Tensor], seed: int) -> list[int]:
    """Return the cluster of each client as the server finds it, of three clients at least."""
    return list(map(int, AtLeast(CLUSTERERS["agglomerative"], 0, 3, seed).fit_predict(embed(cosines(vectors)))))


def measure(dataset: str, scenario: str, seed: int, sizes: list[int]) -> tuple[dict[str, float], dict[str, float]]:
    """Return by how much shares are off, and the likeness of the clusters, by the size of the sketch."""
    config = RunConfig.from_flower({"dataset": dataset, "scenario": scenario, "seed": seed})
    federation = build_federation(config, CLIENTS[dataset])
    task = federation.task
    model = build_model(config.model, task.shape, task.num_classes, seed)
    data = [federation.client(i).train for i in range(federation.num_clients)]
    told = [initial_prototypes(model, own, CPU, task, True) for own in data]
    counts = torch.stack([task.count_strata(own.y) for own in data])
    shares = counts / counts.sum(dim=1, keepdim=True)
    class_means = make_signature(model, public(federation), CPU, task).prototypes
    off = {"none": float((shares - shares.mean(dim=0)).abs().sum(dim=1).mean()) / 2}
    alike: dict[str, float] = {}
    exact = clusters(told, seed)
    for size in sizes:
        sketches = [sketch(own, size, seed) for own in told]
        alike[str(size)] = float(adjusted_rand_score(exact, clusters(sketches, seed)))
        project = torch.cat([sketch(axis, size, seed) for axis in torch.eye(told[0].numel())])
        guessed = fitted_shares(torch.cat(sketches), class_means, project, seed)
        off[str(size)] = float((shares - guessed).abs().sum(dim=1).mean()) / 2
    return off, alike


def public(federation: Federation) -> Examples:
    """Return images of all classes that no client has: the proxy set, with its labels."""
    examples = federation.dataset.train[federation.proxy_indices]
    return Examples(federation.dataset.normalise(examples.x), examples.y)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="4,8,16,32", help="default: %(default)s")
    parser.add_argument("--seeds", type=seeds, default="4", help="a count, a list or ranges; default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = list(map(int, arguments.sizes.split(",")))
    found = {
        (dataset, scenario): [measure(dataset, scenario, seed, sizes) for seed in arguments.seeds]
        for dataset in CLIENTS
        for scenario in SCENARIOS
    }
    names = ", ".join(CLIENTS)
    heads = ["`sketch-size`", f"off by: {names}", *(f"same clusters (ARI), {name}" for name in SCENARIOS)]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for size in ["none", *map(str, sizes)]:
        off = [mean(off[size] for off, _ in found[dataset, "label-groups"]) for dataset in CLIENTS]
        cells = [", ".join(f"{value:.2f}" for value in off)]
        for scenario in SCENARIOS:
            likes = [mean(alike.get(size, 0.0) for _, alike in found[dataset, scenario]) for dataset in CLIENTS]
            cells.append("-" if size == "none" else ", ".join(f"{value:.2f}" for value in likes))
        print(f"| {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
