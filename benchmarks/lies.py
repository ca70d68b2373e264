"""One client lies in one field of its messages: what that moves for the others, for every field and extreme value.

    python benchmarks/lies.py --output lies

Twelve clients share scikit-learn's digits. One of them puts an extreme value into one field of all its messages of one
kind, and is honest otherwise. Numbers and label counts are tried with ``aggregator=mean``, models and prototypes
with ``robust=true``. With ``privacy=secure`` nothing bounds what a client adds to a sum: there the run must end well.
Every run is kept in DIR/runs.jsonl and is not run again when the command is repeated.

The accuracy of an honest client is that of its own expert, with its own label prior, on the test data of all clients of
its planted group.
"""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.torch import load_file

import client_app.app
from disue.cli.cells import THREAD_VARIABLES, prepare_worker
from disue.cli.inline import InlineGrid, simulated_nodes
from disue.config import RunConfig
from disue.data import Examples, Federation, build_federation
from disue.errors import DisueError
from disue.gate import Gate
from disue.metrics import log_prior, score
from disue.models import filled_model
from server_app.run import execute

K = TypeVar("K")
CLIENTS = 12
SETTINGS: dict[str, Any] = {"model": "mlp", "num-server-rounds": 5, "report": False}
MODES: dict[str, dict[str, Any]] = {"plain": {}, "ifca": {"clusterer": "ifca"}, "secure": {"privacy": "secure"}}
"""Name -> run config keys. Of a mode only the fields are tried that no mode before it has."""
LONG = 10**6
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    5e-324,
    1.0,
    1e9,
    1e38,
    10**7,
    10**12,
    2**63 - 1,
    float("nan"),
    float("inf"),
    [],
    [1.0] * LONG,
)
TEXTS: tuple[Any, ...] = ("", "nobody", "a" * LONG, "\0", [], ["a"] * LONG, 1, b"")
ONE = "all in the first"
"""Of a tensor: the sum of its values in the first entry, and zeros."""
FILLS = (ONE, 0.0, -1.0, 1e-45, 1.0, 1e6, 1e38, float("nan"), float("inf"))
SHAPES: tuple[tuple[int, ...], ...] = ((0,), (LONG,))
MISSING = "missing"


class Lie(NamedTuple):
    """What a client says, in all its messages of a kind in one of the `MODES`.

    ``value`` is a number or a text, `MISSING`, or for tensors a number to fill them with, a shape, or `ONE`.
    """

    kind: str
    record: str
    key: str
    value: Any
    mode: str = "plain"

    def __str__(self) -> str:
        told = repr(self.value)
        said = told if len(told) < 30 else f"{told[:10]}... ({len(self.value)})"
        return f"{self.mode}: {self.kind} {self.record} {self.key} = {said}"


class LyingApp(ClientApp):
    """The real ClientApp, one of whose clients lies.

    Parameters
    ----------
    liar : int
        Its partition.
    lie : Lie or None
        None: it is honest.

    Attributes
    ----------
    seen : set of (str, str, str)
        Kind, record and key of all that the liar was about to send.
    """

    def __init__(self, liar: int, lie: Lie | None) -> None:
        super().__init__()
        self.liar = liar
        self.lie = lie
        self.seen: set[tuple[str, str, str]] = set()

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the client that the context tells."""
        reply = client_app.app.app(message, context)
        if context.node_config["partition-id"] == self.liar and reply.has_content():
            kind = message.metadata.message_type
            self.seen |= {(kind, record, key) for record, key in _fields(reply.content)}
            if self.lie is not None and kind == self.lie.kind:
                tell(reply.content, self.lie)
        return reply


def _fields(content: RecordDict) -> Iterator[tuple[str, str]]:
    """Yield the record and key of all fields; the tensors of a model are one field, ``*``."""
    for record, values in content.items():
        yield from ((record, "*" if record == "arrays" else key) for key in values)


def tell(content: RecordDict, lie: Lie) -> None:
    """Put a lie into the content of a reply."""
    record: Any = content[lie.record]
    for key in list(record) if lie.key == "*" else [lie.key]:
        if lie.value == MISSING:
            record.pop(key, None)
        elif not isinstance(record, ArrayRecord):
            record[key] = lie.value
        elif isinstance(lie.value, tuple):
            record[key] = Array(np.ones(lie.value, np.float32))
        else:
            own = record[key].numpy()
            if lie.value == ONE:
                claimed = np.zeros_like(own)
                claimed.flat[0] = own.sum()
            else:
                with np.errstate(all="ignore"):
                    claimed = np.full_like(own, lie.value)
            record[key] = Array(claimed)


def all_lies(place: Path) -> list[Lie]:
    """Return every lie about every field that a client fills in a run of one of the modes."""
    lies: list[Lie] = []
    known: set[tuple[str, str, str]] = set()
    values = {"metrics": NUMBERS, "config": TEXTS}
    for mode, settings in MODES.items():
        seen = run(None, 100, place / mode, **settings)[1].seen
        shutil.rmtree(place / mode)
        for field in sorted(seen - known):
            lies += [Lie(*field, value, mode) for value in (*values.get(field[1], FILLS + SHAPES), MISSING)]
        known |= seen
    return lies


def needs_robust(lie: Lie) -> bool:
    """Return whether the mean promises nothing against the lie: it is about models, prototypes or descriptions."""
    about_arrays = lie.record in ("arrays", "signature") and lie.key != "label-counts"
    return about_arrays and lie.mode == "plain"


def honest_accuracies(config: RunConfig, directory: Path, liar: int) -> dict[int, float]:
    """Return the accuracy of each honest client's own expert, with its label prior, on its group's test data."""
    federation = build_federation(config, CLIENTS)
    task, gate = federation.task, Gate.load(directory, federation.task)
    found: dict[int, float] = {}
    with (directory / "clients.csv").open(newline="") as file:
        clusters = {int(row["client"].removeprefix("client-")): row["cluster"] for row in csv.DictReader(file)}
    for client in sorted(clusters.keys() - {liar}):
        expert = directory / "experts" / f"expert-{clusters[client]}.safetensors"
        state = load_file(expert if expert.exists() else directory / "universal.safetensors")
        model = filled_model(config.model, task.shape, task.num_classes, state)
        known = gate.experts.get(clusters[client]) if gate else None
        own = torch.bincount(federation.client(client).train.y, minlength=task.num_classes)
        shift = None if known is None or known.log_prior is None else log_prior(own) - known.log_prior
        found[client] = score(model, _test_of_group(federation, client), torch.device("cpu"), shift).accuracy
    return found


def _test_of_group(federation: Federation, client: int) -> Examples:
    group = federation.client(client).group
    data = [federation.client(i).test for i in range(CLIENTS) if federation.client(i).group == group]
    return Examples(torch.cat([own.x for own in data]), torch.cat([own.y for own in data]))


def run(
    lie: Lie | None, seed: int, directory: Path, liar: int = 0, **settings: Any
) -> tuple[dict[int, float], LyingApp, dict[str, Any]]:
    """Carry out one run, and return the honest clients' accuracies, the app, and the run's summary."""
    values = SETTINGS | settings | {"seed": seed, "output-dir": str(directory)}
    config = RunConfig.from_flower(values)
    app = LyingApp(liar, lie)
    summary = execute(config, InlineGrid(app, config.to_flower(), simulated_nodes(CLIENTS)))
    return honest_accuracies(config, directory, liar), app, summary


def worst(before: Mapping[K, float], after: Mapping[K, float]) -> float:
    """Return how much the honest client lost that lost most."""
    return max(before[client] - after[client] for client in before)


def _cell(lie: Lie | None, mode: str, robust: bool, seed: int, output: str) -> dict[str, Any]:
    directory = Path(output) / "runs" / str(os.getpid())
    shutil.rmtree(directory, ignore_errors=True)
    row: dict[str, Any] = {"lie": str(lie), "mode": mode, "robust": robust, "seed": seed}
    try:
        accuracies, _, summary = run(lie, seed, directory, robust=robust, **MODES[mode])
    except DisueError as error:
        return row | {"error": str(error)}
    return row | {"accuracies": accuracies, "universal": summary["universal_accuracy"]}


def main() -> None:
    """Run what is missing, and print the worst of every field."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--seeds", default="100,101,102", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once; default: %(default)s")
    arguments = parser.parse_args()
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")  # for the workers
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "runs.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["lie"], row["mode"], row["robust"], row["seed"]) for row in rows}
    lies = all_lies(output)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    cells: list[tuple[Lie | None, str, bool, int]] = []
    for seed in seeds:
        cells += [(lie, lie.mode, needs_robust(lie), seed) for lie in lies]
        cells += [*((None, mode, False, seed) for mode in MODES), (None, "plain", True, seed)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, prepare_worker) as pool, kept.open("a") as file:
        wanted = [cell for cell in cells if (str(cell[0]), *cell[1:]) not in done]
        for future in as_completed(pool.submit(_cell, *cell, arguments.output) for cell in wanted):
            rows.append(future.result())
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    shutil.rmtree(output / "runs", ignore_errors=True)
    print(table({(row["lie"], row["mode"], row["robust"], row["seed"]): row for row in rows}, lies, seeds))


def table(rows: Mapping[tuple[str, str, bool, int], Any], lies: Iterable[Lie], seeds: Iterable[int]) -> str:
    """Return a Markdown table: of each field, the value with the largest loss of one honest client in one seed."""
    lines = ["| message, record, field | mode | values | runs that failed | largest loss of an honest client | with |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    fields: dict[tuple[str, str, str], list[Lie]] = {}
    for lie in lies:
        fields.setdefault(lie[:3], []).append(lie)
    for field, own in fields.items():
        mode, robust = own[0].mode, needs_robust(own[0])
        losses: list[tuple[float, str]] = [(0.0, "")]
        failed = 0
        for lie in own:
            for seed in seeds:
                row, honest = rows[str(lie), mode, robust, seed], rows["None", mode, robust, seed]
                if "error" in row:
                    failed += 1
                else:
                    losses.append((worst(honest["accuracies"], row["accuracies"]), f"{lie.value!r}"[:12]))
        most, value = max(losses)
        name = f"{mode}, `robust=true`" if robust else mode
        told = f"{most:.3f} | `{value}`" if mode != "secure" else "– | –"
        lines.append(f"| {' '.join(field)} | {name} | {len(own)} | {failed} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
