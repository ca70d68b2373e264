"""How far one method is ahead of the best others, in the runs of one or more comparisons.

    python benchmarks/verdict.py docs/results/main.csv

For each dataset and scenario, and for each accuracy, the rival is the method with the highest mean over the seeds, and
the difference is that of the same seed's runs: its mean, with the 95 % interval of Student's t. Methods that are told
the planted groups or their number are rivals by themselves. Prints a table in Markdown.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

from scipy import stats

from disue_cli.commands.compare import make_cells
from disue_cli.compare.tables import markdown
from strategies.methods.chosen import Chosen

MEASURES = {"universal": "universal_accuracy", "expert": "expert_accuracy", "worst decile": "worst_decile_accuracy"}
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


def verdict(rows: Sequence[dict[str, str]], method: str) -> str:
    """Return a Markdown table: where the method stands against the best that is told nothing, and that is told."""
    header = ["dataset, scenario", "accuracy", method, "best told nothing", "difference", "best told", "difference"]
    lines = []
    for place in dict.fromkeys((row["dataset"], row["scenario"]) for row in rows):
        for name, column in MEASURES.items():
            runs = runs_of(rows, place, column)
            own = runs[method]
            runs = {
                label: found for label, found in runs.items() if label.partition(":")[0] != method.partition(":")[0]
            }
            line = [", ".join(place), name, f"{statistics.mean(own.values()):.3f}"]
            for told in (False, True):
                means = {
                    rival: statistics.mean(found[seed] for seed in own)
                    for rival, found in runs.items()
                    if own.keys() <= found.keys() and is_told(rival, place[1]) == told
                }
                if not means:
                    line += ["-", "-"]
                    continue
                best = max(means, key=means.__getitem__)
                mean, half = gain(own, runs[best])
                line += [
                    f"{means[best]:.3f} ({best})",
                    f"{mean:+.3f} ± {half:.3f}" if math.isfinite(half) else f"{mean:+.3f}",
                ]
            lines.append(line)
    return markdown(header, lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results.csv of a comparison")
    parser.add_argument("--method", default="disue", help="whose differences are shown; default: %(default)s")
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
    print(verdict(rows, arguments.method))


if __name__ == "__main__":
    main()
