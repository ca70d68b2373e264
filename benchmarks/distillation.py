"""CPU time of phase U, beside a bare PyTorch loop that takes the same steps on the same batches.

    python benchmarks/distillation.py

Prints one JSON line. Both teach the same student the same targets, by turns in one process, with images in the same
layout (channels last on a CPU). Ours also holds a part of the proxy set out, looks at it to stop early and to guard the
average, and returns the best state of all; what that costs is the ratio. ``teaching_to_bare`` is what comes before:
every expert's logits and the features of the whole proxy set.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import machine
from disue.device import memory_format, mixed_precision, place, prepare_device
from disue.models import Classifier, build_model, get_state
from disue.seeding import torch_rng
from disue.tasks import ImageClassification
from strategies.distillation.distiller import Distiller
from strategies.distillation.server import Server

CLASSES = 10
T = TypeVar("T")


def bare(student: Classifier, x: Tensor, targets: Tensor, distiller: Distiller, device: torch.device) -> None:
    """Distil as a page of PyTorch would, without anything held out."""
    rng = torch_rng("batches")
    layout = memory_format(x, device, mixed=False)
    place(student, device, layout)
    student.train()
    x, soft = x.to(device, memory_format=layout), F.log_softmax(targets.to(device), dim=1)
    optimizer = torch.optim.Adam(student.parameters(), lr=distiller.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=distiller.steps)
    taken = 0
    while taken < distiller.steps:
        for batch in torch.randperm(len(x), generator=rng).to(device).split(distiller.batch_size):
            with mixed_precision(device):
                logits = student(x[batch])
            loss = F.kl_div(F.log_softmax(logits.float(), dim=1), soft[batch], log_target=True, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            taken += 1
            if taken == distiller.steps:
                return


def timed(work: Callable[[], T], device: torch.device) -> float:
    """Return the seconds that work takes: of the CPU, or on a GPU of the clock."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn", help="default: %(default)s")
    parser.add_argument("--side", type=int, default=28, help="of the images, in pixels; default: %(default)s")
    parser.add_argument("--samples", type=int, default=1000, help="of the proxy set; default: %(default)s")
    parser.add_argument("--experts", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    device, shape = prepare_device(arguments.device), (1, arguments.side, arguments.side)
    task = ImageClassification(tuple(map(str, range(CLASSES))), shape, (0.0,), (1.0,))
    server = Server(task, arguments.model, device, 0)
    experts = [get_state(build_model(arguments.model, shape, CLASSES, seed)) for seed in range(arguments.experts)]
    x = torch.randn(arguments.samples, *shape, generator=torch_rng("proxy"))
    distiller = Distiller(steps=arguments.steps, patience=arguments.steps)  # none of its steps may be saved
    targets = 5.0 * torch.stack([server.logits(expert, x) for expert in experts]).mean(dim=0)

    def teach() -> None:
        new = Server(task, arguments.model, device, 0)  # it keeps the features that it has computed
        for expert in experts:
            new.logits(expert, x)
        new.features(experts[0], x)

    def ours() -> None:
        student = build_model(arguments.model, shape, CLASSES, seed=arguments.experts)
        distiller.distil(task, student, x, targets, torch_rng("distil"), device)

    def bare_loop() -> None:
        student = build_model(arguments.model, shape, CLASSES, seed=arguments.experts)
        bare(student, x[: len(x) - round(distiller.held_out * len(x))], targets, distiller, device)

    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "teaching": []}
    for _ in range(1 + arguments.turns):  # the first is not counted
        for name, work in (("bare", bare_loop), ("ours", ours), ("teaching", teach)):
            seconds[name].append(timed(work, device))
    typical = {name: median(values[1:]) for name, values in seconds.items()}
    told = {
        "benchmark": "distillation",
        **{key: getattr(arguments, key) for key in ("model", "side", "samples", "experts", "steps", "device")},
        "steps_per_second": round(arguments.steps / typical["ours"], 1),
        "ours_to_bare": round(typical["ours"] / typical["bare"], 3),
        "teaching_to_bare": round(typical["teaching"] / typical["bare"], 3),
        **machine(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
