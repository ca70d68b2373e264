"""The plots of a comparison, a set for each dataset and scenario."""

import csv
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disue.files import folder_inside
from disue_cli.compare.cells import Cell, for_files, write_whole
from disue_cli.compare.tables import ORACLE, Finished, places
from server_app.config import RunConfig

COLOURS = matplotlib.colormaps["tab20"]
MARKERS = "osv^D<>pPXhd"
NO_CLUSTER = -1


def write_plots(finished: Finished, directory: Path) -> list[Path]:
    """Write four PNG files for each dataset and scenario, and return their paths.

    ``accuracy``: accuracy by round, mean and standard deviation over seeds. ``models``: universal against expert
    accuracy per method. ``clients``: how the clients' own accuracies are distributed. ``clusters``: who is in which
    cluster, beside the planted groups, for one seed.
    """
    directory = folder_inside(directory.parent, directory.name)
    for old in directory.glob("*.png"):
        old.unlink()  # of an earlier command with other methods or scenarios
    paths: list[Path] = []
    for dataset, scenario in places(finished):
        cells = [cell for cell, _ in finished if (cell.dataset, cell.scenario) == (dataset, scenario)]
        runs: dict[str, list[Cell]] = {}
        for cell in cells:
            runs.setdefault(cell.label, []).append(cell)
        for name, draw in (
            ("accuracy", accuracy_by_round),
            ("models", universal_against_expert),
            ("clients", client_accuracies),
            ("clusters", cluster_map),
        ):
            figure = draw(runs)
            figure.suptitle(f"{dataset}, {scenario}", x=0.01, ha="left", fontweight="bold")
            paths.append(directory / f"{name}-{for_files(dataset)}-{for_files(scenario)}.png")
            write_whole(paths[-1], partial(figure.savefig, dpi=110, format="png"))
    return paths


def accuracy_by_round(runs: dict[str, list[Cell]]) -> Figure:
    """Draw universal and expert accuracy by round: lines are means, bands one standard deviation."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for place, metric in zip(axes, ("universal_accuracy", "expert_accuracy"), strict=True):
        for number, (label, cells) in enumerate(runs.items()):
            rounds, mean, deviation = _by_round(cells, metric)
            style = _style(label, number)
            place.plot(rounds, mean, label=label, **style)
            place.fill_between(rounds, mean - deviation, mean + deviation, color=style["color"], alpha=0.1, lw=0)
        place.set(xlabel="round", ylabel=metric.replace("_", " "), ylim=(0.0, 1.0))
        place.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def universal_against_expert(runs: dict[str, list[Cell]]) -> Figure:
    """Draw a point per method, with bars of one standard deviation, and a faint one per seed."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    place = figure.subplots()
    for number, (label, cells) in enumerate(runs.items()):
        last = [row for cell in cells if (row := cell.rows()[-1])["expert_accuracy"] is not None]
        if not last:
            continue
        universal = np.array([row["universal_accuracy"] for row in last])
        expert = np.array([row["expert_accuracy"] for row in last])
        style = _style(label, number) | {"ls": "none", "lw": 1}
        place.scatter(universal, expert, color=style["color"], alpha=0.4, s=12, lw=0)
        style["markersize"] *= 1.6
        bars = (_deviation(expert), _deviation(universal))
        place.errorbar(universal.mean(), expert.mean(), *bars, **style, label=label)
    place.set(xlabel="universal accuracy", ylabel="expert accuracy")
    place.grid(alpha=0.3)
    if place.has_data():
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def client_accuracies(runs: dict[str, list[Cell]]) -> Figure:
    """Draw a box per method over all clients of all seeds: quartiles, and whiskers from the 5th percentile up."""
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(runs)), layout="constrained")
    place = figure.subplots()
    values = [
        [float(row["expert_accuracy"]) for cell in cells for row in _clients(cell) if row["expert_accuracy"]]
        for cells in runs.values()
    ]
    boxes = place.boxplot(
        values,
        orientation="horizontal",
        tick_labels=list(runs),
        whis=(5, 95),
        patch_artist=True,
        widths=0.6,
        showmeans=True,
    )
    for number, box in enumerate(boxes["boxes"]):
        box.set_facecolor(COLOURS(number % 20))
    place.invert_yaxis()
    place.set(
        xlabel="a client's own accuracy (box: quartiles; whiskers: 5 % and 95 %; triangle: mean)", xlim=(-0.02, 1.02)
    )
    place.grid(alpha=0.3, axis="x")
    return figure


def cluster_map(runs: dict[str, list[Cell]]) -> Figure:
    """Draw the clients, sorted by planted group, in the colours of their clusters: one row per method."""
    seed = Counter(cell.seed for cells in runs.values() for cell in cells).most_common(1)[0][0]
    tables = {label: _clients(cell) for label, cells in runs.items() for cell in cells if cell.seed == seed}
    reference = next(iter(tables.values()))
    groups = [int(row["group"] or NO_CLUSTER) for row in reference]
    order = sorted(range(len(groups)), key=lambda i: (groups[i], i))
    rows = {"planted groups": [groups[i] for i in order]}
    for label, table in tables.items():
        by_client = {row["client"]: int(row["cluster"] or NO_CLUSTER) for row in table}
        rows[label] = _recoloured([by_client[reference[i]["client"]] for i in order], rows["planted groups"])
    figure = Figure(figsize=(5.0 + 0.2 * min(len(order), 60), 1.4 + 0.3 * len(rows)), layout="constrained")
    place = figure.subplots()
    image = np.array([[COLOURS(value % 20) if value >= 0 else (1, 1, 1, 1) for value in row] for row in rows.values()])
    place.imshow(image, aspect="auto", interpolation="nearest")
    place.set_yticks(range(len(rows)), list(rows))
    place.set_xlabel(f"clients, by planted group (seed {seed}); white: no cluster")
    place.set_xticks([])
    for edge in range(1, len(order)):
        if groups[order[edge]] != groups[order[edge - 1]]:
            place.axvline(edge - 0.5, color="black", lw=1.5)
    for edge in range(1, len(rows) - 1):
        place.axhline(edge + 0.5, color="white", lw=1.5)
    place.axhline(0.5, color="black", lw=1.5)
    return figure


def _recoloured(clusters: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Number clusters like the planted groups that share most clients with them, so that equal is one colour."""
    from strategies.clustering.matching import match_clusters

    named = {str(i): cluster for i, cluster in enumerate(clusters) if cluster >= 0}
    planted = {str(i): group for i, group in enumerate(groups) if group >= 0}
    matched = match_clusters(planted, named)
    return [matched.get(str(i), NO_CLUSTER) for i in range(len(clusters))]


def _by_round(cells: Sequence[Cell], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values: dict[int, list[float]] = {}
    for cell in cells:
        for row in cell.rows():
            if row[metric] is not None:
                values.setdefault(row["round"], []).append(row[metric])
    mean = np.array([np.mean(value) for value in values.values()])
    return np.array(list(values)), mean, np.array([_deviation(np.array(value)) for value in values.values()])


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _style(label: str, number: int) -> dict[str, Any]:
    """Return how a method is drawn: the default one stands out, the oracle is dashed, all have markers."""
    default = RunConfig().method
    ours = label.split(":")[0] == default
    return {
        "color": "black" if label == default else COLOURS(number % 20),
        "marker": "*" if ours else MARKERS[number % len(MARKERS)],
        "markersize": 9 if ours else 5,
        "lw": 2.5 if ours else 1.2,
        "ls": "--" if label == ORACLE else "-",
        "zorder": 4 if ours else 3,
    }


def _clients(cell: Cell) -> list[dict[str, str]]:
    with (cell.directory / "clients.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
