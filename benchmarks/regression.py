"""Whether anything has become more than a fifth slower, measured by ratios that hold on any machine.

    python benchmarks/regression.py

Runs other scripts here with little work, and compares one ratio of each with what docs/PERFORMANCE.md says. One that is
worse by more than a fifth is measured again with more work, and that counts. So is one that is more than twice as good:
its script may no longer do the work. Prints a line for each, and exits with status 1 if one is so again.
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

    ``quick`` and ``thorough`` are its arguments at first and again; ``more_is_better`` says which way is worse.
    """

    script: str
    quick: tuple[str, ...]
    thorough: tuple[str, ...]
    ratio: str
    measured: float
    more_is_better: bool

    @property
    def limit(self) -> float:
        """The worst that passes."""
        return self.measured * (1.0 - TOLERANCE) if self.more_is_better else self.measured * (1.0 + TOLERANCE)

    def verdict(self, found: float) -> str:
        """Return ok, WORSE than the limit, or BETTER than can be believed."""
        if found < self.limit if self.more_is_better else found > self.limit:
            return "WORSE"
        if found > 2.0 * self.measured if self.more_is_better else found < self.measured / 2.0:
            return "BETTER"
        return "ok"


ROUND_OF_300 = ("--clients", "300", "--rounds", "1", "--reply-memory", "100")
ONCE, THRICE = ("--turns", "1"), ("--turns", "3")
EXPECTED = [
    Expected("simulation.py", ("--rounds", "5", *ONCE), ("--rounds", "8", *ONCE), "inline_to_bare", 0.86, True),
    Expected("distillation.py", ONCE, THRICE, "ours_to_bare", 1.04, False),
    Expected("distillation.py", ONCE, THRICE, "teaching_to_bare", 0.43, False),
    Expected("startup.py", ONCE, THRICE, "client_to_imports", 1.78, False),
    Expected("startup.py", ONCE, THRICE, "run_to_imports", 3.7, False),
    Expected("clustering.py", (), (), "ratio", 1.4, False),
    Expected("large_round.py", ROUND_OF_300, ROUND_OF_300, "peak_to_all_models", 0.48, False),
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
    failed = False
    for one in EXPECTED:
        for key in ((one.script, one.quick), (one.script, one.thorough)):
            known[key] = known.get(key) or measure(*key)
            found = known[key][one.ratio]
            verdict = one.verdict(found)
            if verdict == "ok":
                break
        failed |= verdict != "ok"
        told = f"{one.measured:g} was measured, the limit is {one.limit:.3g}"
        print(f"{one.script:<18} {one.ratio:<18} {found:<7g} {verdict:<6} {told}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
