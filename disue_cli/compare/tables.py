"""The tables of a comparison: every run as a row of CSV, and means over seeds as Markdown."""

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from disue_cli.compare.cells import Cell, Summary, write_whole
from disue_cli.compare.numbers import ACCURACIES, LAST_ROUND, Reported, columns_of, setting, settings_of
from strategies.methods.chosen import Chosen

Finished = Sequence[tuple[Cell, Summary]]
Values = Mapping[int, float]
"""One number per seed."""

LOST = ("clients_failed", "clients_rejected")
ORACLE = "oracle"
BASELINE = "fedavg"
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
- Mean ± standard deviation over the seeds. The best mean is **bold**, those that are told the groups (oracle), or how
  many there are (ifca, fesem, fedgroup), aside.
- Differences are paired: the same seed has the same clients and data for every method.
- *client steps* are all clients' optimiser steps of all rounds. ditto's and stocfl's clients train two models, and
  fedrep's head has epochs of its own. *fine-tuning steps* are those behind *personal*, which is *expert* for fedavg-ft.
  *MB* are the payloads of training; what evaluation took is in results.csv. local's models travel only because the
  server keeps them, and ccvr's covariances after every round, so that its model can be measured there: its paper asks
  once, after the last. *server seconds* are spent on clustering and distillation, wall time with all workers busy.
"""
TARGET_LEGEND = """
- *rounds to* an accuracy: the first round whose universal accuracy is at least that, as if the curve were made
  monotone (McMahan et al. 2017, section 3). *MB to* it: the payloads of training until then, both ways together. They
  are medians over the seeds, where one that never gets there counts as infinite: `-` if the median does. In how many
  seeds it is reached is said if not in all.
"""


def write_results(finished: Finished, path: Path, reported: Reported = LAST_ROUND) -> None:
    """Write one row per run."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["dataset", "scenario", "method", "seed", *reported.columns, "settings"])
            for cell, summary in finished:
                found = columns_of(cell, summary, reported).values()
                numbers = ["" if value is None else value for value in found]
                writer.writerow([cell.dataset, cell.scenario, cell.label, cell.seed, *numbers, settings_of([cell])])

    write_whole(path, write)


def write_table(finished: Finished, path: Path, reported: Reported = LAST_ROUND) -> None:
    """Write, for each dataset and scenario, what the methods reached and what it cost."""
    total = sum(summary["cpu_seconds"] for _, summary in finished)
    told = {
        cell.label
        for cell, _ in finished
        if Chosen(cell.config).naming(lambda uses: uses.planted_groups or uses.given_number)
    }
    sections = [
        f"{len(finished)} runs, {total / 60:.0f} minutes of one core.\n",
        f"Each with {setting([cell for cell, _ in finished])}.\n",
        *(_section(*place, _values(finished, *place, reported), told, reported) for place in places(finished)),
        LEGEND + TARGET_LEGEND.lstrip() if reported.targets else LEGEND,
    ]
    write_whole(path, lambda part: part.write_text("\n".join(sections), encoding="utf-8"))


def places(finished: Finished) -> list[tuple[str, str]]:
    """Return the pairs of dataset and scenario, in the order of the command."""
    return list(dict.fromkeys((cell.dataset, cell.scenario) for cell, _ in finished))


def _values(finished: Finished, dataset: str, scenario: str, reported: Reported) -> Mapping[str, Mapping[str, Values]]:
    """Return the numbers by method, column and seed."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for cell, summary in finished:
        if (cell.dataset, cell.scenario) == (dataset, scenario):
            columns = values.setdefault(cell.label, {column: {} for column in reported.columns})
            for column, value in columns_of(cell, summary, reported).items():
                if value is not None:
                    columns[column][cell.seed] = value
    return values


def _section(
    dataset: str, scenario: str, values: Mapping[str, Mapping[str, Values]], told: set[str], reported: Reported
) -> str:
    seeds = sorted({seed for columns in values.values() for seed in columns["universal_accuracy"]})
    differences = [
        (f"{name} − {against}", reported.column(column), against)
        for column, name in (("universal_accuracy", "universal"), ("expert_accuracy", "expert"))
        for against in (BASELINE, ORACLE)
        if against in values and not (against == ORACLE and name == "universal")
    ]
    to_target = _to_target(reported.targets.get(dataset))
    header = [
        "method",
        *ACCURACIES.values(),
        "clusters",
        "ari",
        *(title for title, _, _ in differences),
    ]
    fair = {label: columns for label, columns in values.items() if label not in told}
    accuracies = [reported.column(accuracy) for accuracy in ACCURACIES]
    best = {column: _best(fair, column) for column in accuracies}
    lost = {label: sum(sum(columns[key].values()) for key in LOST) for label, columns in values.items()}
    notes = []
    if reported.last_rounds > 1:
        notes += [f"Accuracies are means over the last {reported.last_rounds} rounds, where they were measured."]
    notes += [f"{label}: {count:.0f} updates failed or were rejected." for label, count in lost.items() if count]
    rows = []
    for label, columns in values.items():
        row = [_named(label, columns, seeds)]
        for column in accuracies:
            text = spread(list(columns[column].values()))
            row.append(f"**{text}**" if label in best[column] else text)
        row += [spread(list(columns["num_clusters"].values()), ".1f"), spread(list(columns["ari"].values()), ".2f")]
        for _, column, against in differences:
            row.append("" if label == against else spread(paired(columns[column], values[against][column]), "+.3f"))
        rows.append(row)
    costs = [
        [
            label,
            *(mean_of(columns[key], show) for key, (_, show) in COSTS.items()),
            *(until(columns[key], list(columns["client_steps"]), show) for key, show in to_target.values()),
        ]
        for label, columns in values.items()
    ]
    return "\n".join(
        [
            f"## {dataset}, {scenario}\n",
            " ".join([f"Seeds {', '.join(map(str, seeds))}.", *notes]) + "\n",
            markdown(header, rows),
            markdown(["method", *(title for title, _ in COSTS.values()), *to_target], costs),
        ]
    )


def _to_target(target: float | None) -> dict[str, tuple[str, Callable[[float], str]]]:
    """Return, by title, the columns that say what a target took, and how they are shown."""
    if target is None:
        return {}
    return {
        f"rounds to {target:g}": ("rounds_to_target", lambda value: f"{value:g}"),
        f"MB to {target:g}": ("bytes_to_target", lambda value: f"{value / 1e6:.1f}"),
    }


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


def until(values: Values, seeds: Sequence[int], show: Callable[[float], str]) -> str:
    """Return the median over seeds of what it took to reach something, and in how many it was reached, if not in all.

    A seed without a number counts as infinite.

    Examples
    --------
    >>> [until(values, [7, 8, 9], str) for values in ({7: 30, 8: 20, 9: 25}, {7: 30, 8: 20}, {7: 30}, {})]
    ['25', '30 (2 of 3 seeds)', '- (1 of 3 seeds)', '-']
    """
    median = statistics.median([values.get(seed, math.inf) for seed in seeds])
    text = show(median) if median < math.inf else "-"
    return text if len(values) in (0, len(seeds)) else f"{text} ({len(values)} of {len(seeds)} seeds)"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
