"""What a minority of malicious clients costs: universal accuracy by attack and defence, over several seeds.

    python benchmarks/robustness.py --output robustness

Every run is kept in DIR/runs.jsonl and is not run again when the command is repeated. The accuracy is that of the
server's balanced test set. ``backdoor`` also has the share of test images with the trigger, of other classes, that are
taken for the attacker's class.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from safetensors.torch import load_file

from benchmarks.arguments import assignment, seeds
from benchmarks.attacks import ATTACKS, BACKDOOR_CLASS, AttackedApp, malicious_partitions, with_trigger
from disue.assignments import parse_assignments
from disue.data import Federation, build_federation
from disue.errors import DisueError
from disue.metrics import predict_logits
from disue.models import build_model
from disue_cli.compare.cells import THREAD_VARIABLES, prepare_worker
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import ROBUST, RunConfig
from server_app.run import execute

PRESET: dict[str, Any] = {key.replace("_", "-"): value for key, value in ROBUST.items()}
DEFENCES: dict[str, dict[str, Any]] = {
    "mean": {},
    "median": {"aggregator": "median"},
    "trimmed-mean": {"aggregator": "trimmed-mean"},
    "krum": {"aggregator": "krum"},
    "multi-krum": {"aggregator": "multi-krum"},
    "geometric-median": {"aggregator": "geometric-median"},
    "robust": {"robust": True},
    **{
        f"preset-{rule}-{share:g}": PRESET | {"aggregator": rule, "malicious-share": share}
        for rule in ("geometric-median", "median", "trimmed-mean", "multi-krum")
        for share in (0.2, 0.4)
    },
}
"""Name -> run config keys."""
NEEDS_EVALUATIONS = "claimed-fits"
"""An attack that does nothing where clients evaluate after the last round only, as they do here otherwise."""
Row = dict[str, Any]


def run(defence: str, attack: str, seed: int, arguments: argparse.Namespace) -> Row:
    """Carry out one run and return what is reported of it."""
    directory = Path(arguments.output) / "runs" / f"{defence}-{attack}-{seed}"
    settings = parse_assignments(arguments.set) | DEFENCES[defence]
    config = RunConfig.from_flower(
        {"seed": seed, "report": False, "evaluate-every": 1000, "output-dir": str(directory), **settings}
    )
    federation = build_federation(config, arguments.clients)
    groups = [federation.client(i).group for i in range(arguments.clients)]
    chosen = malicious_partitions(groups, arguments.malicious, seed)
    malicious = chosen if attack != "none" else set()
    app = AttackedApp(ATTACKS[attack], malicious)
    row: Row = {"defence": defence, "sets": sets(defence), "attack": attack, "seed": seed, **asked(arguments)}
    row |= {"attackers": sorted(malicious)}
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was broken off
    try:
        summary = execute(config, InlineGrid(app, config.to_flower(), simulated_nodes(arguments.clients)))
    except DisueError as error:
        return row | {"universal_accuracy": None, "error": str(error)}
    rejected = sum(json.loads(line)["clients_rejected"] for line in (directory / "metrics.jsonl").open())
    row |= {key: summary[key] for key in ("universal_accuracy", "expert_accuracy", "num_clusters", "ari")}
    row |= {"rejected": rejected, "honest_expert_accuracy": _honest_expert_accuracy(directory, chosen)}
    return row | ({"backdoor_success": _backdoor_success(config, directory, federation)} if malicious else {})


def sets(defence: str) -> Row:
    """Return all keys that a defence sets; one that was run with others is run again."""
    return PRESET if DEFENCES[defence].get("robust") else DEFENCES[defence]


def asked(arguments: argparse.Namespace) -> Row:
    """Return what all runs of a call have in common; with other values they are other runs."""
    settings = parse_assignments(arguments.set)
    return {"clients": arguments.clients, "malicious": arguments.malicious, "settings": settings}


def _honest_expert_accuracy(directory: Path, chosen: Collection[int]) -> float:
    """Return the accuracy of the experts of all clients but those, each on its client's own test data, on the mean."""
    with (directory / "clients.csv").open(newline="") as file:
        rows = [(int(row["client"].removeprefix("client-")), row["expert_accuracy"]) for row in csv.DictReader(file)]
    return mean(float(accuracy) for partition, accuracy in rows if partition not in chosen)


def _backdoor_success(config: RunConfig, directory: Path, federation: Federation) -> float:
    test = federation.global_test()
    model = build_model(config.model, federation.task.shape, federation.task.num_classes)
    model.load_state_dict(load_file(directory / "universal.safetensors"))
    others = test.x[test.y != BACKDOOR_CLASS]
    logits = predict_logits(model, with_trigger(others, federation.task), torch.device("cpu"))
    return float((logits.argmax(dim=1) == BACKDOOR_CLASS).float().mean())


def table(rows: Iterable[Row], attacks: Iterable[str], defences: Iterable[str], key: str = "universal_accuracy") -> str:
    """Return a Markdown table of means and standard deviations over the seeds."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.get(key) is not None:
            values.setdefault((row["attack"], row["defence"]), []).append(row[key])

    def cell(attack: str, defence: str) -> str:
        found = values.get((attack, defence), [])
        spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
        return f"{mean(found):.3f}{spread}" if found else "-"

    defences = list(defences)
    lines = [["attack", *defences], ["---"] * (len(defences) + 1)]
    lines += [[attack, *(cell(attack, defence) for defence in defences)] for attack in attacks]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the runs are kept")
    usual = ",".join(attack for attack in ATTACKS if attack != NEEDS_EVALUATIONS)
    parser.add_argument("--attacks", default=usual, help=f"also {NEEDS_EVALUATIONS}; default: %(default)s")
    some = f"some of {', '.join(DEFENCES)}; default: %(default)s"
    parser.add_argument("--defences", default="mean,robust", help=some)
    parser.add_argument("--seeds", type=seeds, default="0,1,2", help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--malicious", type=float, default=0.2, help="share of the clients; default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once; default: %(default)s")
    parser.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=["dataset=fashion-mnist", "num-groups=4", "batch-size=10", "learning-rate=0.01"],
        metavar="KEY=VALUE",
        help="a run config key, also several times; default: the settings of docs/RESULTS.md",
    )
    arguments = parser.parse_args()
    attacks, defences = arguments.attacks.split(","), arguments.defences.split(",")
    for attack, defence in itertools.product(attacks, defences):
        if attack not in ATTACKS or defence not in DEFENCES:
            parser.error(f"no such attack or defence: {attack}, {defence}")
    if NEEDS_EVALUATIONS in attacks and "evaluate-every" not in parse_assignments(arguments.set):
        parser.error(f"--attacks: got {NEEDS_EVALUATIONS}, which lies in evaluations; add --set evaluate-every=1")
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")  # for the workers
    kept = Path(arguments.output) / "runs.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = [row for row in lines if row.get("sets") == sets(row["defence"])]
    common = asked(arguments)
    if any(row.get(key) != value for row in rows for key, value in common.items()):
        parser.error(f"--output: '{arguments.output}' has runs with other settings; name another")
    known = {(row["defence"], row["attack"], row["seed"]) for row in rows}
    wanted = [
        (defence, attack, seed) for seed, attack, defence in itertools.product(arguments.seeds, attacks, defences)
    ]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(arguments.workers, context, prepare_worker) as pool, kept.open("a") as file:
        for future in as_completed(pool.submit(run, *cell, arguments) for cell in wanted if cell not in known):
            rows.append(future.result())
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    rows = [row for row in rows if (row["defence"], row["attack"], row["seed"]) in wanted]
    attackers = sorted({len(row["attackers"]) for row in rows if row["attack"] != "none"})
    print(f"Universal accuracy, {arguments.clients} clients, {' or '.join(map(str, attackers)) or 'none'} malicious\n")
    print(table(rows, attacks, defences))
    print("\nExperts of the others, each on its client's own test data\n")
    print(table(rows, attacks, defences, "honest_expert_accuracy"))
    print("\nImages with the trigger that are taken for the attacker's class\n")
    print(table((row for row in rows if row["attack"] == "backdoor"), ["backdoor"], defences, "backdoor_success"))


if __name__ == "__main__":
    main()
