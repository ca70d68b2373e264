"""Client updates per second: many small clients that train as one network, beside the same clients one by one.

    python benchmarks/train_batched.py

Prints one JSON line. Both train the same clients on the same device, by turns; on a GPU the time is wall time with all
kernels done, on a CPU it is CPU time. ``equal`` is the share of the clients that end with the same model either way,
within 1e-5. It must be 0.95: where a number is within rounding of a kink (ReLU, the largest of a pool), a client goes
another way.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, median

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from torch.profiler import profile

from benchmarks.machine import machine
from client_app.train import train
from client_app.train_batched import train_batched
from disue.data import Examples, build_federation
from disue.device import prepare_device
from disue.models import Classifier, State, build_model, fill, get_state
from disue.objective import PLAIN
from disue.seeding import torch_rng
from disue.tasks import ImageClassification
from server_app.config import RunConfig

CLASSES, SHAPE = 10, (1, 28, 28)
TASK = ImageClassification(tuple(map(str, range(CLASSES))), SHAPE, (0.0,), (1.0,))


def one_by_one(model: Classifier, start: State, data: list[Examples], config: RunConfig, device: str) -> list[State]:
    """Train each client as a node does on which it is alone."""
    trained = []
    for i, examples in enumerate(data):
        fill(model, start)
        train(model, examples, config, PLAIN, torch_rng("train", i), torch.device(device), TASK)
        trained.append(get_state(model))
    return trained


def together(model: Classifier, start: State, data: list[Examples], config: RunConfig, device: str) -> list[State]:
    """Train them as a node does on which all sit."""
    rngs = [torch_rng("train", i) for i in range(len(data))]
    starts = [start] * len(data)
    found = train_batched(model, starts, data, config, PLAIN, rngs, torch.device(device), TASK)
    return [state for state, _ in found]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=100, help="training images of each; default: %(default)s")
    parser.add_argument("--model", default="lenet", help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--profile", action="store_true", help="also where the time goes together, on stderr")
    parser.add_argument("--noise", action="store_true", help="images of noise, where Fashion-MNIST is not at hand")
    arguments = parser.parse_args()
    device = prepare_device(arguments.device).type
    settings = {"model": arguments.model, "local-epochs": 1, "train-examples": arguments.examples}
    config = RunConfig.from_flower({"dataset": "fashion-mnist", "scenario": "iid", **settings})
    model = build_model(config.model, SHAPE, CLASSES, config.seed)
    start, data = get_state(model), clients_of(config, arguments)
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {"one_by_one": [], "together": []}
    found: dict[str, list[State]] = {}
    for _ in range(arguments.turns + 1):
        for name, way in (("one_by_one", one_by_one), ("together", together)):
            started = clock()
            found[name] = way(model, start, data, config, device)  # it ends on the CPU: all kernels are done
            seconds[name].append(clock() - started)
    pairs = zip(*found.values(), strict=True)
    equal = [
        all(torch.allclose(alone[key], its, rtol=0.0, atol=1e-5) for key, its in other.items())
        for alone, other in pairs
    ]
    if mean(equal) < 0.95:
        raise SystemExit(f"of the clients that trained together only {mean(equal):.2f} end where each ends alone")
    usual = {name: median(turns[1:]) for name, turns in seconds.items()}  # without the first, which warms up
    told = {
        "benchmark": "together",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **{key: getattr(arguments, key) for key in ("clients", "examples", "model")},
        **{f"{name}_updates_per_second": round(len(data) / own, 1) for name, own in usual.items()},
        "together_to_one_by_one": round(usual["one_by_one"] / usual["together"], 3),
        "equal": mean(equal),
        **machine(),
    }
    if arguments.profile:
        with profile() as seen:
            together(model, start, data, config, device)
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12), file=sys.stderr)
    print(json.dumps(told))


def clients_of(config: RunConfig, arguments: argparse.Namespace) -> list[Examples]:
    """Return the clients' training data."""
    if not arguments.noise:
        federation = build_federation(config, arguments.clients)
        return [federation.client(i).train for i in range(arguments.clients)]
    rng = torch_rng("noise")
    return [
        Examples(
            torch.randn(arguments.examples, *SHAPE, generator=rng),
            torch.randint(CLASSES, (arguments.examples,), generator=rng),
        )
        for _ in range(arguments.clients)
    ]


if __name__ == "__main__":
    main()
