"""Client updates per second with `mixed-precision`, beside the same training in float32.

    python benchmarks/mixed_precision.py --device cuda

Prints one JSON line. One client trains on images of noise, by turns either way; on a GPU the time is wall time with
all kernels done, on a CPU it is CPU time. Both must end with a lower loss than they began with.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch

from benchmarks.machine import machine
from client_app.train import train
from disue.data import Examples
from disue.device import prepare_device
from disue.metrics import evaluate
from disue.models import build_model, fill, get_state
from disue.objective import PLAIN
from disue.seeding import torch_rng
from disue.tasks import ImageClassification
from server_app.config import RunConfig

CLASSES = 10


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels; default: %(default)s")
    parser.add_argument("--examples", type=int, default=2000, help="of the client; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; default: %(default)s")
    arguments = parser.parse_args()
    device = prepare_device(arguments.device)
    shape, rng = (3, arguments.side, arguments.side), torch_rng("noise")
    labels = torch.randint(CLASSES, (arguments.examples,), generator=rng)
    means = torch.randn(CLASSES, *shape, generator=rng)
    data = Examples(means[labels] + torch.randn(arguments.examples, *shape, generator=rng), labels)
    task = ImageClassification(tuple(map(str, range(CLASSES))), shape, (0.0,) * 3, (1.0,) * 3)
    model = build_model(arguments.model, shape, CLASSES, 0)
    start = get_state(model)
    at_first = evaluate(task, model, data, device).loss
    settings = {"local-epochs": 1, "batch-size": arguments.batch_size, "learning-rate": 0.01}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[bool, list[float]] = {False: [], True: []}
    losses: dict[bool, float] = {}
    for _ in range(arguments.turns + 1):
        for mixed in seconds:
            config = RunConfig.from_flower({**settings, "mixed-precision": mixed})
            fill(model, start)
            started = clock()
            train(model, data, config, PLAIN, torch_rng("train"), device, task)  # reads the loss: kernels are done
            seconds[mixed].append(clock() - started)
            losses[mixed] = evaluate(task, model, data, device).loss
    if not all(loss < at_first for loss in losses.values()):
        raise SystemExit(f"the loss was {at_first:.3f} before training, and after it {losses}")
    usual = {mixed: median(turns[1:]) for mixed, turns in seconds.items()}  # without the first, which warms up
    told = {
        "benchmark": "mixed_precision",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **{key: getattr(arguments, key) for key in ("model", "side", "examples", "batch_size")},
        "examples_per_second": round(arguments.examples / usual[True]),
        "mixed_to_float32": round(usual[False] / usual[True], 3),
        "losses": {"before": at_first, "float32": losses[False], "mixed": losses[True]},
        **machine(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
