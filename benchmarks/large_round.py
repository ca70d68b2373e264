"""What the server needs for a round of very many clients: memory, disk, and CPU time by phase.

    python benchmarks/large_round.py

Prints one JSON line. The server is the real one, and so are the messages, through the in-process grid. The clients are
made up: they train nothing, and answer with what they were sent, moved a little the way that their group goes. What is
told of memory is the process's own; pages of the file in which models are kept are the operating system's to drop.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import machine
from disue.models import MODELS, Classifier, Shape, State, build_model
from disue.seeding import torch_rng
from disue.signature import Signature, SignatureParts
from disue.tasks import DataSummary
from disue.wire import CompareReply, DescribeReply, EvaluateReply, EvaluateRequest, HelloReply, TrainReply, TrainRequest
from disue.wire.compare import SHARES
from disue_cli.engines.inline import InlineGrid
from server_app.config import RunConfig
from server_app.run import execute

CLASSES, SHAPE = 10, (1, 8, 8)
HIDDEN, FEATURES = 3400, 270
EXAMPLES = 100
GROUPS = 4
MIB = 2**20


@MODELS.register("a-million")
def _a_million(shape: Shape, num_classes: int) -> Classifier:
    """Return a network of 1.1 million parameters for 8x8 images."""
    pixels = shape[0] * shape[1] * shape[2]
    body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES), nn.ReLU())
    return Classifier(body, FEATURES, num_classes)


class MadeUpClients:
    """Answers of clients in `GROUPS` groups, each with half of the classes more often than the others."""

    def __init__(self, model: str) -> None:
        parameters = build_model(model, SHAPE, CLASSES).state_dict()
        rng = torch_rng("made-up clients")
        self.moves = [
            {name: 0.01 * torch.randn(tensor.shape, generator=rng) for name, tensor in parameters.items()}
            for _ in range(GROUPS)
        ]
        self.counts = torch.randint(1, 20, (GROUPS, CLASSES), generator=rng).float()
        features = parameters["head.weight"].shape
        self.prototypes = torch.rand((GROUPS, *features), generator=rng)
        shape = SignatureParts(CLASSES, "axes").covariance_shape(parameters)
        self.axes = 0.1 * torch.eye(shape[2])[: shape[1]].repeat(shape[0], 1, 1)
        self.model = model

    def prototypes_of(self, number: int) -> torch.Tensor:
        """Return class prototypes, (classes, features): its group's, and noise of its own."""
        own = self.prototypes[number % GROUPS]
        return own + 0.1 * torch.randn(own.shape, generator=torch_rng("prototypes", number))

    def trained(self, start: State, number: int) -> State:
        """Return the start, moved."""
        share = float(torch.rand(1, generator=torch_rng("trained", number))) + 0.5
        return {name: torch.add(start[name], move, alpha=share) for name, move in self.moves[number % GROUPS].items()}

    def app(self) -> ClientApp:
        """Return a ClientApp that answers for all of them."""
        app = ClientApp()

        @app.query()
        def hello(message: Message, context: Context) -> Message:
            name = str(context.node_config["name"])
            summary = DataSummary(tuple(map(str, range(CLASSES))), (0.5,), (0.25,))
            return HelloReply(name, EXAMPLES, -1, 0, self.model, summary).to_message(message)

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            told = F.pad(self.prototypes_of(number_of(context)), (0, 1))  # and the root of each class's share
            return DescribeReply(F.normalize(told.flatten(), dim=0).view_as(told)).to_message(message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            request, number = TrainRequest.from_message(message), number_of(context)
            assert request.start is not None
            axes = self.axes if request.covariance else None
            signature = Signature(self.counts[number % GROUPS], self.prototypes_of(number), axes)
            state = self.trained(request.start, number)
            return TrainReply(state, int(signature.label_counts.sum()), 1.0, 1, signature).to_message(message)

        @app.query("compare")
        def compare(message: Message, context: Context) -> Message:
            return CompareReply(tuple(1.0 - share for share in SHARES)).to_message(message)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            asked = EvaluateRequest.from_message(message)
            fits = (1.0, 1.0) if asked.compare else (None, None)
            personal = 0.5 if asked.personalise else None
            return EvaluateReply(10, 0.5, 1.0, 0.5, personal, 0, *fits).to_message(message)

        return app


def number_of(context: Context) -> int:
    """Return the number in a client's name."""
    return int(str(context.node_config["name"]).removeprefix("client-"))


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Give the most memory of this process's own, in bytes, as long as the block runs."""
    found, done = {"peak": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            found["peak"] = max(found["peak"], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def own_memory() -> int:
    """Return the memory of this process without pages of files, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--reply-memory", type=int, default=1024, help="MiB, as the key; default: %(default)s")
    parser.add_argument("--model", default="a-million", help="default: %(default)s")
    parser.add_argument("--directory", help="where the run and its file of models are; default: a new one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    clients = MadeUpClients(arguments.model)
    nodes: list[dict[str, object]] = [{"name": f"client-{i}"} for i in range(arguments.clients)]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        settings = {
            "dataset": "own",
            "input-shape": "x".join(map(str, SHAPE)),
            "model": arguments.model,
            "proxy": "dataset:digits",
            "num-server-rounds": arguments.rounds,
            "reply-memory": arguments.reply_memory,
            "evaluate-every": 1,
            "report": False,
            "output-dir": str(Path(directory) / "run"),
        }
        config = RunConfig.from_flower(settings)
        before = own_memory()
        with peak_memory() as memory:
            execute(config, InlineGrid(clients.app(), config.to_flower(), nodes))
        rows = [json.loads(line) for line in (Path(directory) / "run" / "metrics.jsonl").open()]
    model_bytes = sum(tensor.nbytes for tensor in clients.moves[0].values())
    told = {
        "benchmark": "large_round",
        "clients": arguments.clients,
        "parameters": model_bytes // 4,
        "reply_memory_mib": arguments.reply_memory,
        "all_models_mib": arguments.clients * model_bytes // MIB,
        "peak_memory_mib": memory["peak"] // MIB,
        "memory_before_mib": before // MIB,
        "peak_to_all_models": round(memory["peak"] / (arguments.clients * model_bytes), 3),
        "clusters": [row["num_clusters"] for row in rows],
        **{key: [row[key] for row in rows] for key in rows[0] if key.startswith("seconds_")},
        **machine(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
