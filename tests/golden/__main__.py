"""Compare all cases with their files, or with another commit: ``python -m tests.golden [--against COMMIT]``."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES
from tests.golden.compare import ROOT, differences, keep, kept, recorded


def main() -> int:
    """Return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--against", metavar="COMMIT", help="run that commit here, too, and compare bit by bit")
    parser.add_argument("--update", action="store_true", help="write the files, which changes results on purpose")
    parser.add_argument("--add", action="store_true", help="keep this machine's bits, too, where numbers are as before")
    arguments = parser.parse_args()
    names = arguments.names or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    key, found = recorded(names)
    if arguments.update:
        for name in names:
            keep(name, key, found[name])
        return 0
    if arguments.against:
        others = _of_commit(arguments.against, names)
        before = {name: {"numbers": own["numbers"], "hashes": {key: own["hashes"]}} for name, own in others.items()}
    else:
        before = {name: kept(name) for name in names}
    status = 0
    for name in names:
        lines = differences(before[name], found[name], key)
        how = "bits" if key in before[name].get("hashes", {}) else f"numbers only, no bits are kept for {key}"
        print(f"{name}: {'differs' if lines else f'as before ({how})'}")
        for line in lines[:20]:
            print(f"    {line}")
        if arguments.add and not lines:
            keep(name, key, found[name], others_hold=True)
        status |= bool(lines)
    return status


def _of_commit(commit: str, names: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            return recorded(names, tree)[1]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
