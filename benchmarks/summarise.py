"""Print a Markdown table of finished runs: ``python benchmarks/summarise.py DIR...``.

One row per run, and one row per method with the mean over its seeds.
"""

import json
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

COLUMNS = ("universal_accuracy", "expert_accuracy", "personal_accuracy", "worst_decile_accuracy", "num_clusters", "ari")


def main(directories: list[Path]) -> None:
    """Print the table for these run directories."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for directory in directories:
        summary = json.loads((directory / "summary.json").read_text())
        if summary["status"] != "completed":
            sys.exit(f"{directory}: the run ended as '{summary['status']}': {summary.get('error')}")
        run = tomllib.loads((directory / "config.toml").read_text())["run"]
        key = ("dataset", "scenario", "num-groups", "method")
        groups[tuple(str(run[name]) for name in key)].append(summary)
    print("| dataset | scenario | groups | method | seed |", " | ".join(c.replace("_", " ") for c in COLUMNS), "|")
    print("| --- " * (5 + len(COLUMNS)) + "|")
    for key, summaries in groups.items():
        for summary in sorted(summaries, key=lambda s: s["seed"]):
            _print_row(*key, str(summary["seed"]), values=[summary[c] for c in COLUMNS])
        means = [None if summaries[0][c] is None else mean(s[c] for s in summaries) for c in COLUMNS]
        _print_row(*key, f"mean of {len(summaries)}", values=means, bold=True)


def _print_row(*cells: str, values: list[Any], bold: bool = False) -> None:
    numbers = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values]
    texts = [f"**{text}**" if bold else text for text in (*cells, *numbers)]
    print("|", " | ".join(texts), "|")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
