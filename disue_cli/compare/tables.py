"""The tables of a comparison: every run as a row of CSV, and means over seeds as Markdown."""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from disue_cli.compare.cells import Cell, Summary, write_whole
from strategies.methods.chosen import Chosen

Finished = Sequence[tuple[Cell, Summary]]
Values = Mapping[int, float]
"""One number per seed."""

LOST = ("clients_failed", "clients_rejected")
ORACLE = "oracle"
BASELINE = "fedavg"
COLUMNS = (
    *("universal_accuracy", "universal_loss", "average_accuracy", "expert_accuracy", "personal_accuracy"),
    *("worst_decile_accuracy", "num_clusters", "ari", "nmi", "churn", "rounds", "clients"),
    *("clients_failed", "clients_rejected", "client_steps", "personal_steps"),
    *("bytes_up", "bytes_down", "bytes_evaluation", "server_seconds", "seconds_local", "seconds_clustering"),
    *("seconds_distillation", "seconds_evaluation", "wall_seconds", "cpu_seconds"),
)
ACCURACIES = {
    "universal_accuracy": "universal",
    "expert_accuracy": "expert",
    "worst_decile_accuracy": "worst decile",
    "personal_accuracy": "personal",
}
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "client_steps": ("client steps", lambda value: f"{value:.0f}"),
    "personal_steps": ("fine-tuning steps", lambda value: f"{value:.0f}"),
    "bytes_up": ("MB up", lambda value: f"{value / 1e6:.1f}"),
    "bytes_down": ("MB down", lambda value: f"{value / 1e6:.1f}"),
    "server_seconds": ("server seconds", lambda value: f"{value:.1f}"),
}
LEGEND = """
- *universal*: one model on the balanced global test set. *expert*: each client's own model on its own test data, mean
  over clients. *worst decile*: *expert* of the worst tenth of the clients. *personal*: the expert after one more
  local training. Methods that train clusters apart have no universal model: theirs is the mean of all clients' models.
  Nor has fedrep: its own is the body that clients share, under the head that the run began with. In ditto and fedrep a
  client's own model is one that it keeps.
- Where a client of disue uses its expert, its own label shares stand for the cluster's (expert-prior=client); with
  local-loss=balanced every method's clients add theirs. Other methods' experts are used as they were published.
- *clusters* and *ari* after the last round; *ari* compares with the planted groups, where there are any. ifca, fesem
  and fedgroup are told the number of clusters (num-clusters, or else num-groups); flhc, pacfl and disue choose it,
  unless num-clusters is set, and stocfl by its threshold (stocfl-tau).
- Mean ± standard deviation over the seeds. The best mean is **bold**, those that are told the groups (oracle) aside.
- Differences are paired: the same seed has the same clients and data for every method.
- *client steps* are all clients' optimiser steps of all rounds. ditto's and stocfl's clients train two models, and
  fedrep's head has epochs of its own. *fine-tuning steps* are those behind *personal*, which is *expert* for fedavg-ft.
  *MB* are the payloads of training; what evaluation took is in results.csv. local's models travel only because the
  server keeps them. *server seconds* are spent on clustering and distillation, wall time with all workers busy.
"""


def columns_of(summary: Summary) -> dict[str, float | int | None]:
    """Return the numbers of a finished run by column."""
    server_seconds = summary["seconds_clustering"] + summary["seconds_distillation"]
    return {column: (summary | {"server_seconds": server_seconds}).get(column) for column in COLUMNS}


def write_results(finished: Finished, path: Path) -> None:
    """Write one row per run."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["dataset", "scenario", "method", "seed", *COLUMNS])
            for cell, summary in finished:
                numbers = ["" if value is None else value for value in columns_of(summary).values()]
                writer.writerow([cell.dataset, cell.scenario, cell.label, cell.seed, *numbers])

    write_whole(path, write)


def write_table(finished: Finished, path: Path) -> None:
    """Write, for each dataset and scenario, what the methods reached and what it cost."""
    total = sum(summary["cpu_seconds"] for _, summary in finished)
    told = {cell.label for cell, _ in finished if Chosen(cell.config).naming(lambda uses: uses.planted_groups)}
    sections = [
        f"{len(finished)} runs, {total / 60:.0f} minutes of one core.\n",
        *(_section(*place, _values(finished, *place), told) for place in places(finished)),
        LEGEND,
    ]
    write_whole(path, lambda part: part.write_text("\n".join(sections), encoding="utf-8"))


def places(finished: Finished) -> list[tuple[str, str]]:
    """Return the pairs of dataset and scenario, in the order of the command."""
    return list(dict.fromkeys((cell.dataset, cell.scenario) for cell, _ in finished))


def _values(finished: Finished, dataset: str, scenario: str) -> Mapping[str, Mapping[str, Values]]:
    """Return the numbers by method, column and seed."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for cell, summary in finished:
        if (cell.dataset, cell.scenario) == (dataset, scenario):
            columns = values.setdefault(cell.label, {column: {} for column in COLUMNS})
            for column, value in columns_of(summary).items():
                if value is not None:
                    columns[column][cell.seed] = value
    return values


def _section(dataset: str, scenario: str, values: Mapping[str, Mapping[str, Values]], told: set[str]) -> str:
    seeds = sorted({seed for columns in values.values() for seed in columns["universal_accuracy"]})
    differences = [
        (f"{name} − {against}", column, against)
        for column, name in (("universal_accuracy", "universal"), ("expert_accuracy", "expert"))
        for against in (BASELINE, ORACLE)
        if against in values and not (against == ORACLE and name == "universal")
    ]
    header = [
        "method",
        *ACCURACIES.values(),
        "clusters",
        "ari",
        *(title for title, _, _ in differences),
    ]
    fair = {label: columns for label, columns in values.items() if label not in told}
    best = {column: _best(fair, column) for column in ACCURACIES}
    lost = {label: sum(sum(columns[key].values()) for key in LOST) for label, columns in values.items()}
    notes = [f"{label}: {count:.0f} updates failed or were rejected." for label, count in lost.items() if count]
    rows = []
    for label, columns in values.items():
        row = [_named(label, columns, seeds)]
        for column in ACCURACIES:
            text = spread(list(columns[column].values()))
            row.append(f"**{text}**" if label in best[column] else text)
        row += [spread(list(columns["num_clusters"].values()), ".1f"), spread(list(columns["ari"].values()), ".2f")]
        for _, column, against in differences:
            row.append("" if label == against else spread(paired(columns[column], values[against][column]), "+.3f"))
        rows.append(row)
    costs = [
        [label, *(mean_of(columns[key], show) for key, (_, show) in COSTS.items())] for label, columns in values.items()
    ]
    return "\n".join(
        [
            f"## {dataset}, {scenario}\n",
            " ".join([f"Seeds {', '.join(map(str, seeds))}.", *notes]) + "\n",
            markdown(header, rows),
            markdown(["method", *(title for title, _ in COSTS.values())], costs),
        ]
    )


def _best(values: Mapping[str, Mapping[str, Values]], column: str) -> set[str]:
    """Return the methods with the highest mean as it is printed."""
    means = {
        label: round(statistics.mean(columns[column].values()), 3)
        for label, columns in values.items()
        if columns[column]
    }
    return {label for label, mean in means.items() if mean == max(means.values())}


def _named(label: str, columns: Mapping[str, Values], seeds: Sequence[int]) -> str:
    count = len(columns["universal_accuracy"])
    return label if count == len(seeds) else f"{label} ({count} of {len(seeds)} seeds)"


def paired(first: Values, second: Values) -> list[float]:
    """Return ``first - second`` for every seed that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Return mean ± sample standard deviation; the mean alone for one value, a dash for none.

    Examples
    --------
    >>> spread([0.5, 0.7]), spread([0.5]), spread([], ".1f")
    ('0.600 ± 0.141', '0.500', '-')
    """
    if not values:
        return "-"
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f"{text} ± {format(statistics.stdev(values), form.lstrip('+'))}"


def mean_of(values: Values, show: Callable[[float], str]) -> str:
    """Return the mean over seeds, or a dash."""
    return show(statistics.mean(values.values())) if values else "-"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
