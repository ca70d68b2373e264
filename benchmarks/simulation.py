"""Client updates per second: our inline engine beside a bare PyTorch loop over the same clients, one core each.

    python benchmarks/simulation.py

Prints one JSON line. Both train the same model on the same batches of the same clients, a round by turns in one
process, with images in the same layout (channels last on a CPU), and both average in each round. What is measured is
CPU time; the ratio is the median of those of two rounds that follow each other, so that other work on the machine
hardly changes it. The first round and the last, in which the engine evaluates, are not counted. The models that come
out must be equal.

With ``--device cuda`` both compute on a GPU, the time is wall time, and the models must be equal within 1e-4.
``--clients-per-node`` is of our engines; on a GPU the clients of a node train together.

With ``--pfl`` also pfl, beside the bare loop in the same way; it draws other batches.

With ``--ray`` the same by Flower's simulation on all cores, after the others: wall time of a round's training, to that
of as many bare loops as there are cores. Nothing else should run on the machine then.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks.machine import machine
from disue.data import Examples, Federation, build_federation
from disue.device import memory_format, place, prepare_device
from disue.models import Classifier, State, build_model, get_state
from disue.naming import by_name
from disue.seeding import torch_rng
from disue_cli.engines.inline import nodes_for, run_inline
from disue_cli.engines.ray import run_ray
from server_app.config import RunConfig

MODEL = "universal.safetensors"


def bare_update(model: Classifier, start: State, data: Examples, config: RunConfig, rng: torch.Generator) -> State:
    """Train one client as a page of PyTorch would, and return its model."""
    model.load_state_dict(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate, momentum=config.momentum)
    x, y = data.x, data.y
    for _ in range(config.local_epochs):
        for batch in torch.randperm(len(y), generator=rng).to(y.device).split(config.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return get_state(model)


def clock(config: RunConfig) -> float:
    """Return seconds: of the CPU, or of the clock where a GPU computes."""
    return time.perf_counter() if config.device == "cuda" else time.process_time()


def bare(config: RunConfig, federation: Federation, clients: int) -> Iterator[tuple[float, State]]:
    """Yield the seconds of each round of a bare loop, and the model after it."""
    task, device = federation.task, config.device
    own = {f"client-{i}": federation.client(i).train for i in range(clients)}
    layout = memory_format(next(iter(own.values())).x, torch.device(device), mixed=False)
    data = {name: Examples(train.x.to(device, memory_format=layout), train.y.to(device)) for name, train in own.items()}
    model = build_model(config.model, task.shape, task.num_classes, config.seed)
    place(model, torch.device(device), layout)
    average = get_state(model)
    for server_round in range(1, config.num_server_rounds + 1):
        started = clock(config)
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in average.items()}
        total = sum(len(own) for own in data.values())
        for name in by_name(data):
            rng = torch_rng(config.seed, "train", name, server_round)
            state = bare_update(model, average, data[name], config, rng)
            for key, tensor in state.items():
                sums[key].add_(tensor.double(), alpha=len(data[name]) / total)
        average = {name: tensor.float() for name, tensor in sums.items()}
        yield clock(config) - started, average


def by_turns(
    config: RunConfig, federation: Federation, clients: int, engine: Callable[[Callable[[], None]], None]
) -> tuple[list[tuple[float, float]], State]:
    """Run an engine, and a round of the bare loop after each of its own.

    The machine's speed, which other work changes, is then nearly the same for both.

    Parameters
    ----------
    engine : callable
        Runs, and calls what it is given after each round.

    Returns
    -------
    pairs : list of (float, float)
        The seconds of the bare loop and of the engine, in each round but the first and the last.
    state : State
        The model that the bare loop ends with.
    """
    loop, started = bare(config, federation, clients), clock(config)
    pairs: list[tuple[float, float]] = []
    state: State = {}

    def take_turn() -> None:
        nonlocal state, started
        own = clock(config) - started
        seconds, state = next(loop)
        pairs.append((seconds, own))
        started = clock(config)

    engine(take_turn)
    return pairs[1:-1], state


def inline(config: RunConfig, clients: int, directory: Path, after_round: Callable[[], None]) -> None:
    """Run the inline engine into a directory."""
    config = config.model_copy(update={"output_dir": str(directory)})
    run_inline(config, clients, lambda row: after_round())


def through_ray(config: RunConfig, clients: int) -> tuple[list[float], State]:
    """Return the wall seconds of each round's training by the Ray engine, and the model that it ends with."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "run"
        rows: list[dict[str, float]] = []
        nodes = nodes_for(config, clients)
        run_ray(config.model_copy(update={"output_dir": str(place)}), nodes, 0.0, rows.append)
        return [row["seconds_local"] for row in rows], load_file(place / MODEL)


def same(expected: State, found: State, near: float) -> bool:
    """Return whether two models are equal within ``near``."""
    return all(torch.allclose(expected[name], tensor, rtol=0.0, atol=near) for name, tensor in found.items())


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=100, help="training images of each; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=6, help="of each turn; default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--pfl", action="store_true", help="also by pfl, which must be installed (pip install pfl)")
    parser.add_argument("--ray", action="store_true", help="also by the Ray engine, on all cores")
    parser.add_argument("--clients-per-node", type=int, default=1, help="in our engines; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.ray and arguments.device != "cpu":
        parser.error("--ray is for the CPU")
    prepare_device(arguments.device)  # bare loops multiply as ours do
    logging.disable(logging.WARNING)
    config = RunConfig.from_flower(
        {
            "method": "fedavg",
            "dataset": "fashion-mnist",
            "scenario": "iid",
            "model": "lenet",
            "local-epochs": 1,
            "train-examples": arguments.examples,
            "test-examples": 10,
            "global-test-size": 10,
            "proxy-size": 10,
            "num-server-rounds": arguments.rounds,
            "evaluate-every": 1000,
            "report": False,
            "device": arguments.device,
            "clients-per-node": arguments.clients_per_node,
        }
    )
    federation = build_federation(config, arguments.clients)
    pairs: dict[str, list[tuple[float, float]]] = {"inline": []}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "run"
            measured, expected = by_turns(
                config, federation, arguments.clients, partial(inline, config, arguments.clients, place)
            )
            pairs["inline"] += measured
            if not same(expected, load_file(place / MODEL), 1e-4 if arguments.device == "cuda" else 0.0):
                raise SystemExit("the inline engine and the bare loop do not end with the same model")
        if arguments.pfl:
            from benchmarks import pfl_loop

            engine = partial(pfl_loop.run, config, federation, arguments.clients)
            pairs.setdefault("pfl", []).extend(by_turns(config, federation, arguments.clients, engine)[0])
    bare_seconds = [seconds for measured in pairs.values() for seconds, _ in measured]
    ratios = {engine: median(loop / own for loop, own in measured) for engine, measured in pairs.items()}
    told = {
        "benchmark": "simulation",
        **{key: getattr(arguments, key) for key in ("clients", "examples", "device", "clients_per_node")},
        "bare_updates_per_second": round(arguments.clients / median(bare_seconds), 1),
        **{f"{engine}_to_bare": round(ratio, 3) for engine, ratio in ratios.items()},
        **({"inline_to_pfl": round(ratios["inline"] / ratios["pfl"], 3)} if arguments.pfl else {}),
        **machine(),
    }
    if arguments.ray:
        rounds, found = through_ray(config, arguments.clients)
        if not same(expected, found, 0.0):
            raise SystemExit("the Ray engine and the bare loop do not end with the same model")
        cores = int(told["cores"])
        told["ray_to_bare_on_all_cores"] = round(median(bare_seconds) / (cores * median(rounds[1:])), 3)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
