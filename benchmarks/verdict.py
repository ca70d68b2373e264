"""How far one method is ahead of the best others, in the runs of one or more comparisons.

    python benchmarks/verdict.py docs/results/main.csv

For each dataset and scenario, and for each accuracy, the rival is the method with the highest mean over the seeds, and
the difference is that of the same seed's runs: its mean, with the 95 % interval of Student's t. Methods that are told
the planted groups or their number are rivals by themselves. Prints a table in Markdown; in its last rows are the means
over the scenarios that ``--mean`` names, as far as a dataset has them.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

from matplotlib.figure import Figure
from scipy import stats

from disue_cli.commands.compare import make_cells
from disue_cli.compare.tables import markdown
from strategies.methods.chosen import Chosen

MEASURES = {"universal": "universal_accuracy", "expert": "expert_accuracy", "worst decile": "worst_decile_accuracy"}
MEAN = ("label-groups", "rotation", "dirichlet")
"""Scenarios of which there is a mean; where labels contradict each other no model for all is good."""
Runs = dict[str, dict[int, float]]
"""By method and seed."""


def runs_of(rows: Sequence[dict[str, str]], place: tuple[str, str], column: str) -> Runs:
    """Return one column of a dataset's and scenario's runs."""
    runs: Runs = {}
    for row in rows:
        if (row["dataset"], row["scenario"]) == place and row[column]:
            runs.setdefault(row["method"], {})[int(row["seed"])] = float(row[column])
    return runs


def is_told(method: str, scenario: str) -> bool:
    """Return whether a method, as `disue compare` has it, is told the planted groups or their number."""
    (cell,) = make_cells([method], [scenario], [0], ["digits"], 12, {"num-groups": 4}, Path())
    return Chosen(cell.config).naming(lambda uses: uses.planted_groups or uses.given_number) is not None


def gain(own: dict[int, float], other: dict[int, float]) -> tuple[float, float]:
    """Return the mean of the paired differences, and half the width of its 95 % interval; infinite for one pair.

    Examples
    --------
    >>> mean, half = gain({1: 0.5, 2: 0.7, 3: 0.6}, {1: 0.4, 2: 0.5, 3: 0.5})
    >>> round(mean, 4), round(half, 4)
    (0.1333, 0.1434)
    """
    pairs = [own[seed] - other[seed] for seed in own.keys() & other.keys()]
    if len(pairs) < 2:
        return statistics.mean(pairs), float("inf")
    half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return statistics.mean(pairs), float(half)


@dataclass(frozen=True)
class Difference:
    """How far a method is ahead of the best rival of a kind, in one accuracy of a dataset and scenario.

    Attributes
    ----------
    place : (str, str)
        Dataset and scenario.
    measure : str
        A key of `MEASURES`.
    told : bool
        Whether the rivals are told the planted groups or their number.
    own : float
        Mean of the method.
    rival : str
        Empty: there is none.
    best : float
        Its mean.
    mean, half : float
        Of the paired differences, and half the width of their 95 % interval.
    """

    place: tuple[str, str]
    measure: str
    told: bool
    own: float
    rival: str = ""
    best: float = math.nan
    mean: float = math.nan
    half: float = math.nan

    def cells(self) -> list[str]:
        """Return what a table has of it."""
        if not self.rival:
            return ["-", "-"]
        width = f" ± {self.half:.3f}" if math.isfinite(self.half) else ""
        return [f"{self.best:.3f} ({self.rival})", f"{self.mean:+.3f}{width}"]


def differences(rows: Sequence[dict[str, str]], method: str) -> list[Difference]:
    """Return where the method stands against the best that is told nothing, and against the best that is told."""
    found: list[Difference] = []
    for place in dict.fromkeys((row["dataset"], row["scenario"]) for row in rows):
        for name, column in MEASURES.items():
            runs = runs_of(rows, place, column)
            own = runs[method]
            others = {label: run for label, run in runs.items() if label.partition(":")[0] != method.partition(":")[0]}
            for told in (False, True):
                means = {
                    rival: statistics.mean(run[seed] for seed in own)
                    for rival, run in others.items()
                    if own.keys() <= run.keys() and is_told(rival, place[1]) == told
                }
                mean_own = statistics.mean(own.values())
                if means:
                    best = max(means, key=means.__getitem__)
                    found.append(Difference(place, name, told, mean_own, best, means[best], *gain(own, runs[best])))
                else:
                    found.append(Difference(place, name, told, mean_own))
    return found


def verdict(found: Sequence[Difference], method: str, in_mean: Sequence[str] = ()) -> str:
    """Return the differences as a Markdown table.

    ``in_mean``: the scenarios of which there are means, for each dataset that has all of them.
    """
    header = ["dataset, scenario", "accuracy", method, "best told nothing", "difference", "best told", "difference"]
    pairs = list(zip(found[::2], found[1::2], strict=True))
    lines = [
        [", ".join(free.place), free.measure, f"{free.own:.3f}", *free.cells(), *told.cells()] for free, told in pairs
    ]
    for dataset in dict.fromkeys(own.place[0] for own in found):
        for name in MEASURES:
            here = {
                free.place[1]: (free, told) for free, told in pairs if (free.place[0], free.measure) == (dataset, name)
            }
            if in_mean and here.keys() >= set(in_mean):
                free, told = ([here[scenario][i] for scenario in in_mean] for i in (0, 1))
                own = statistics.fmean(one.own for one in free)
                ahead = [text for mean in (mean_of(free), mean_of(told)) for text in ("", signed(mean))]
                lines.append([f"{dataset}, mean", name, f"{own:.3f}", *ahead])
    return markdown(header, lines)


def means(rows: Sequence[dict[str, str]], method: str) -> str:
    """Return a Markdown table for each dataset: each method's universal and expert accuracy, by scenario.

    They are means over the seeds that ``method`` was run with; a dash stands where another was not run with all.
    """
    columns = [MEASURES["universal"], MEASURES["expert"]]
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        scenarios = list(dict.fromkeys(row["scenario"] for row in rows if row["dataset"] == dataset))
        runs = {scenario: [runs_of(rows, (dataset, scenario), column) for column in columns] for scenario in scenarios}

        def cell(name: str, scenario: str, runs: dict[str, list[Runs]] = runs) -> str:
            found = [(own.get(name, {}), own[method]) for own in runs[scenario]]
            there = all(seeds.keys() <= own.keys() for own, seeds in found)
            accuracies = (statistics.fmean(own[seed] for seed in seeds) for own, seeds in found) if there else ()
            return " / ".join(f"{mean:.3f}" for mean in accuracies) or "-"

        names = dict.fromkeys(row["method"] for row in rows if row["dataset"] == dataset)
        lines = [[name, *(cell(name, scenario) for scenario in scenarios)] for name in names]
        tables.append(markdown([f"{dataset}: universal / expert", *scenarios], lines))
    return "\n".join(tables)


def signed(mean: float) -> str:
    """Return a difference as text; a dash, if there is none."""
    return "-" if math.isnan(mean) else f"{mean:+.3f}"


def mean_of(found: Sequence[Difference]) -> float:
    """Return the mean of some differences; not a number, if there is no rival in one of them."""
    return statistics.fmean(one.mean for one in found)


def draw(found: Sequence[Difference], path: Path) -> None:
    """Draw the differences, with their intervals, of each accuracy in a panel."""
    figure = Figure(figsize=(9, 1.4 + 0.35 * len({own.place for own in found})), layout="constrained")
    places = list(dict.fromkeys(own.place for own in found))[::-1]
    for axes, name in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES, strict=True):
        for told, colour, shift, label in (
            (False, "C0", 0.12, "told nothing"),
            (True, "C1", -0.12, "told the groups, or their number"),
        ):
            here = [own for own in found if (own.measure, own.told) == (name, told) and own.rival]
            heights = [places.index(own.place) + shift for own in here]
            widths = [own.half if math.isfinite(own.half) else 0.0 for own in here]
            axes.errorbar([own.mean for own in here], heights, xerr=widths, fmt="o", color=colour, label=label)
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set(title=name, yticks=range(len(places)))
        axes.set_yticklabels([", ".join(place) for place in places])
    figure.supxlabel("accuracy less that of the best rival")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.csv of a comparison")
    parser.add_argument("--method", default="disue", help="whose differences are shown; default: %(default)s")
    parser.add_argument(
        "--mean",
        help=f"scenarios to average over, in datasets that have all; default: {','.join(MEAN)}",
    )
    parser.add_argument("--every", action="store_true", help="print the means of every method, too")
    parser.add_argument("--figure", type=Path, help="a file, .png or .svg, into which the differences are drawn")
    arguments = parser.parse_args()
    rows: list[dict[str, str]] = []
    for path in arguments.results:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
        except OSError as error:
            parser.error(f"'{path}' cannot be read ({error.strerror})")
    for place in dict.fromkeys((row["dataset"], row["scenario"]) for row in rows):
        methods = dict.fromkeys(row["method"] for row in rows if (row["dataset"], row["scenario"]) == place)
        if arguments.method not in methods:
            parser.error(f"--method: got '{arguments.method}'; in {', '.join(place)} there are {', '.join(methods)}")
    in_mean = MEAN if arguments.mean is None else arguments.mean.split(",")
    scenarios = dict.fromkeys(row["scenario"] for row in rows)
    if arguments.mean is not None and (unknown := [name for name in in_mean if name not in scenarios]):
        parser.error(f"--mean: got '{unknown[0]}'; there are {', '.join(scenarios)}")
    found = differences(rows, arguments.method)
    if arguments.figure:
        draw(found, arguments.figure)
    print(verdict(found, arguments.method, in_mean))
    if arguments.every:
        print(means(rows, arguments.method))


if __name__ == "__main__":
    main()
