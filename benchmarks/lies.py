"""One client lies in one field of its messages: what that moves for the others, for every field and extreme value.

    python benchmarks/lies.py --output lies

Twelve clients share scikit-learn's digits. One of them puts an extreme value into one field of all its messages of one
kind, and is honest otherwise. Numbers and label counts are tried with ``aggregator=mean``, models, prototypes and
descriptions with ``robust=true``. Every run is kept in DIR/runs.jsonl and is not run again when the command is
repeated. In all seeds but the first only one value of a field is tried of those that are refused when they are read.

The exit status is 1 if a run fails or is not whole, or if an honest client loses more than 0.05 of its accuracy; a line
names each such run. With ``privacy=secure`` nothing bounds what a client adds to a sum, and with ``privacy=dp`` noise
hides it: there only the run must end well.

The accuracy of an honest client is that of its own expert, with its own label prior, on the test data of all clients of
its planted group. The universal expert's is on the test data of all clients; what it loses is printed, and not judged.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.arguments import seeds
from benchmarks.losses import (
    MODES,
    PAGE,
    RESULTS,
    ROOT,
    Accuracies,
    Row,
    filled,
    losses,
    offences,
    settings_of,
    table,
    write_losses,
)
from benchmarks.lying import MODELS, Lie, LyingApp, Place, declared, values_of, with_one_refused
from disue.data import OWN, ClientData, Examples, Federation, build_federation
from disue.data.own import open_own
from disue.errors import FederationError
from disue.fields import Other
from disue.metrics import evaluate
from disue.models import filled_model
from disue.runs.reading import load_run
from disue.tasks.classification import log_prior
from disue.wire.bundle import KEY as BUNDLE
from disue_cli.compare.cells import THREAD_VARIABLES, prepare_worker
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import RunConfig
from server_app.run import execute

CLIENTS = 12
SETTINGS: dict[str, Any] = {"model": "mlp", "num-server-rounds": 5, "report": False}
SHORT: dict[str, Any] = {
    "num-server-rounds": 3,
    "local-epochs": 1,
    "distill-steps": 20,
    "calibration-epochs": 1,
    "train-examples": 20,
    "test-examples": 10,
}
"""Of runs that only show which fields there are."""


def fields_of_mode(mode: str, directory: Path) -> set[Place]:
    """Return which fields a client fills in a short run."""
    settings = MODES[mode].settings | SHORT
    app = LyingApp(0, None)
    try:
        _execute(app, 100, directory, settings)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(_data_of(directory), ignore_errors=True)
    return app.seen


def all_lies(fields_of: Mapping[str, set[Place]]) -> list[Lie]:
    """Return every lie about every field that a client fills in a run of one of the modes."""
    lies: list[Lie] = []
    known: set[Place] = set()
    fields = declared()
    of_bundles = Other("", record="config", must_be="")
    for mode, seen in fields_of.items():
        again = MODES[mode].again
        for own in sorted(own for own in seen if own not in known or own[0] in again):
            field = of_bundles if own[1] == BUNDLE else fields[own][0]
            lies += [Lie(*own, value, mode) for value in values_of(field)]
        known |= seen
    return lies


def needs_robust(lie: Lie) -> bool:
    """Return whether the mean promises nothing against the lie: it is about models, prototypes or descriptions."""
    return lie.record in (*MODELS, "signature") and lie.key != "label-counts" and MODES[lie.mode].bounded


def _data_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}-data")


def _planted(seed: int, settings: dict[str, Any]) -> Federation:
    """Return the data of all clients, as the scenario divides them, also where each is then given its own as a file."""
    sizes = {key: value for key, value in settings.items() if key in SHORT}
    return build_federation(RunConfig.from_flower(SETTINGS | sizes | {"seed": seed}), CLIENTS)


def _nodes(config: RunConfig, seed: int, directory: Path, settings: dict[str, Any]) -> list[dict[str, object]]:
    if config.dataset != OWN:
        return simulated_nodes(CLIENTS // config.clients_per_node)
    federation, dataset = _planted(seed, settings), _planted(seed, settings).dataset
    _data_of(directory).mkdir(parents=True)
    for i, parts in enumerate(zip(federation.train_parts, federation.test_parts, strict=True)):
        train, test = dataset.train[parts[0]], dataset.test[parts[1]]
        pixels = torch.cat([train.x, test.x]).numpy()[:, 0] / np.float32(dataset.maximum)
        np.savez(_data_of(directory) / f"client-{i}.npz", x=pixels, y=torch.cat([train.y, test.y]).numpy())
    places = {f"client-{i}": str(_data_of(directory) / f"client-{i}.npz") for i in range(CLIENTS)}
    return [{"name": name, "data-path": place} for name, place in places.items()]


def _execute(app: LyingApp, seed: int, directory: Path, settings: dict[str, Any]) -> Row:
    config = RunConfig.from_flower(SETTINGS | settings | {"seed": seed, "output-dir": str(directory)})
    return execute(config, InlineGrid(app, config.to_flower(), _nodes(config, seed, directory, settings)))


def honest_accuracies(directory: Path, liars: Iterable[int] = (0,)) -> Accuracies:
    """Return what the experts of a finished run are worth: of each honest client on its planted group's test data."""
    run = load_run(directory)
    config, task = run.config, run.task
    planted = _planted(config.seed, config.to_flower())
    clients = range(CLIENTS)
    if config.dataset == OWN:
        places = {i: str(_data_of(directory) / f"client-{i}.npz") for i in clients}
        splits = (open_own(places[i], config.shape, config.test_fraction, config.seed, f"client-{i}") for i in clients)
        data = [split.for_task(task) for split in splits]
    else:
        data = [planted.client(i) for i in clients]
    groups = [planted.client(i).group for i in clients]

    def accuracy(path: Path, test: Examples, shift: torch.Tensor | None = None) -> float:
        model = filled_model(config.model, task.shape, task.num_classes, load_file(path), config.seed)
        found = evaluate(task, model, test, torch.device("cpu"), shift).metrics["accuracy"]
        assert found is not None
        return found

    experts: dict[int, float] = {}
    universal = directory / "universal.safetensors"
    honest = {f"client-{i}": i for i in clients if i not in liars}
    for name in sorted(honest.keys() & run.clusters.keys()):  # a liar may say another name
        client, cluster = honest[name], run.clusters[name]
        expert = directory / "experts" / f"expert-{cluster}.safetensors"
        known = run.gate.experts.get(str(cluster)) if run.gate else None
        own = torch.bincount(data[client].train.y, minlength=task.num_classes)
        shift = None if known is None or known.log_prior is None else log_prior(own) - known.log_prior
        test = _tests(data, (i for i in clients if groups[i] == groups[client]))
        experts[client] = accuracy(expert if expert.exists() else universal, test, shift)
    return Accuracies(experts, accuracy(universal, _tests(data, clients)))


def _tests(data: Sequence[ClientData], clients: Iterable[int]) -> Examples:
    tests = [data[i].test for i in clients]
    return Examples(torch.cat([own.x for own in tests]), torch.cat([own.y for own in tests]))


def run(lie: Lie | None, seed: int, directory: Path, **settings: Any) -> tuple[Accuracies, LyingApp, Row]:
    """Carry out one run whose first node lies, and return the accuracies, the app, and the run's summary."""
    app = LyingApp(0, lie)
    summary = _execute(app, seed, directory, settings)
    if summary["status"] != "completed":
        raise FederationError(f"the run is not complete: it {summary['status']}")
    return honest_accuracies(directory, range(settings.get("clients-per-node", 1))), app, summary


def _row(lie: Lie | None, mode: str, robust: bool, seed: int) -> Row:
    """Return what tells a run from the others."""
    told = {"field": " ".join(lie.place), "value": lie.said} if lie else {}
    return {"mode": mode, "robust": robust, "seed": seed, **told}


def _cell(lie: Lie | None, mode: str, robust: bool, seed: int, output: str) -> Row:
    directory = Path(output) / "runs" / str(os.getpid())
    for place in (directory, _data_of(directory)):
        shutil.rmtree(place, ignore_errors=True)
    row = _row(lie, mode, robust, seed)
    try:
        (experts, universal), _, _ = run(lie, seed, directory, **settings_of(mode, robust))
    except Exception as error:  # whatever it is: the run of one lie must not end that of the others, and is told of
        return row | {"error": f"{type(error).__name__}: {error}"[:300]}
    rounded = {str(client): round(accuracy, 4) for client, accuracy in sorted(experts.items())}
    return row | {"experts": rounded, "universal": round(universal, 4)}


def wanted_cells(lies: Sequence[Lie], seeds: Sequence[int]) -> list[tuple[Lie | None, str, bool, int]]:
    """Return what is to be run: in the first seed all lies, in the others one of those that are refused."""
    cells: list[tuple[Lie | None, str, bool, int]] = []
    for seed in seeds:
        tried = lies if seed == seeds[0] else with_one_refused(lies)
        own: list[tuple[Lie | None, str, bool, int]] = [(lie, lie.mode, needs_robust(lie), seed) for lie in tried]
        honest: list[tuple[Lie | None, str, bool, int]] = [(None, *key) for key in dict.fromkeys(c[1:] for c in own)]
        cells += honest + own
    return cells


def _key(row: Row) -> tuple[Any, ...]:
    return row["mode"], row["robust"], row["seed"], row.get("field"), row.get("value")


def main() -> int:
    """Run what is missing, print the worst of every field, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--seeds", type=seeds, default="100-102", help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="only lies whose name has it, as the table says it")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once; default: %(default)s")
    publish = f"write {RESULTS.relative_to(ROOT)}, and the table into {PAGE.relative_to(ROOT)}"
    parser.add_argument("--publish", action="store_true", help=publish)
    arguments = parser.parse_args()
    if arguments.publish and arguments.only:
        parser.error("--publish: the page shows all lies; leave --only out")
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")  # for the workers
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "runs.jsonl"
    before = map(json.loads, kept.read_text().splitlines()) if kept.exists() else ()
    rows = {_key(row): row for row in before if "error" not in row}  # a disk may have been full
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, prepare_worker) as pool, kept.open("a") as file:
        seen = pool.map(fields_of_mode, MODES, [output / "runs" / f"fields-{mode}" for mode in MODES])
        lies = [lie for lie in all_lies(dict(zip(MODES, seen, strict=True))) if arguments.only in str(lie)]
        if not lies:
            parser.error(f"--only: got '{arguments.only}'; no lie has it in its name, as 'plain: train metrics steps'")
        wanted = {_key(_row(*cell)): cell for cell in wanted_cells(lies, arguments.seeds)}
        missing = [cell for key, cell in wanted.items() if key not in rows]
        print(f"{len(wanted)} runs, of which {len(missing)} are not there yet", file=sys.stderr, flush=True)
        for future in as_completed([pool.submit(_cell, *cell, arguments.output) for cell in missing]):
            row = future.result()
            rows[_key(row)] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    shutil.rmtree(output / "runs", ignore_errors=True)
    found = losses(rows[key] for key in wanted)
    print(table(found))
    if arguments.publish:
        write_losses(RESULTS, found)
        PAGE.write_text(filled(PAGE.read_text(), table(found)))
    faults = offences(found)
    print("".join(f"{line}\n" for line in faults), end="", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
