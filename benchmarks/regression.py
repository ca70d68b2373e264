"""Whether anything has become more than a fifth slower, measured by ratios that hold on any machine.

    python benchmarks/regression.py

Runs other scripts here with little work, and compares one ratio of each with what docs/PERFORMANCE.md says. Prints a
line for each, and exits with status 1 if one is worse by more than a fifth.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOLERANCE = 0.2


@dataclass(frozen=True)
class Expected:
    """A ratio that a script prints, and how large it was.

    ``more_is_better`` says which way is worse.
    """

    script: str
    arguments: tuple[str, ...]
    ratio: str
    measured: float
    more_is_better: bool

    @property
    def limit(self) -> float:
        """The worst that passes."""
        return self.measured * (1.0 - TOLERANCE) if self.more_is_better else self.measured * (1.0 + TOLERANCE)

    def passes(self, found: float) -> bool:
        """Return whether a ratio is no worse than the limit."""
        return found >= self.limit if self.more_is_better else found <= self.limit


ROUND_OF_300 = ("--clients", "300", "--rounds", "1", "--reply-memory", "100")
EXPECTED = [
    Expected("simulation.py", ("--rounds", "8", "--turns", "1"), "inline_to_bare", 0.92, more_is_better=True),
    Expected("distillation.py", ("--turns", "3"), "ours_to_bare", 1.07, more_is_better=False),
    Expected("distillation.py", ("--turns", "3"), "teaching_to_bare", 0.54, more_is_better=False),
    Expected("startup.py", (), "client_to_imports", 1.65, more_is_better=False),
    Expected("startup.py", (), "run_to_imports", 6.4, more_is_better=False),
    Expected("clustering.py", (), "ratio", 1.4, more_is_better=False),
    Expected("large_round.py", ROUND_OF_300, "peak_to_all_models", 0.48, more_is_better=False),
]


def measure(script: str, arguments: tuple[str, ...]) -> dict[str, float]:
    """Return what a script prints."""
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, print, and exit with status 1 if something is worse."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    known: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    worse = False
    for one in EXPECTED:
        key = one.script, one.arguments
        known[key] = known.get(key) or measure(*key)
        found = known[key][one.ratio]
        verdict = "ok" if one.passes(found) else "WORSE"
        worse |= verdict != "ok"
        told = f"{one.measured:g} was measured, the limit is {one.limit:.3g}"
        print(f"{one.script:<18} {one.ratio:<18} {found:<7g} {verdict:<6} {told}", flush=True)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
