"""Feed everything that reads from outside with spoilt input, and print what came of it as one line of JSON.

    python benchmarks/fuzz.py --inputs 100000

An input may be taken, or refused with one clear line. Anything else is unhandled: it is counted, the input is made
small and printed, and the exit status is 1. Memory is limited, so that a header that announces too much is found out.
"""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SLICE = 400
GIGABYTES = 6
"""Address space of the process, of which libraries have the greater part."""


def main() -> int:
    """Run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs of all targets together (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    parser.add_argument("--only", default="", help="beginnings of the names of targets, separated by commas")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    import torch
    from fuzzing.running import feed
    from fuzzing.targets import make_targets

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results: dict[str, dict[str, float]] = {}
    unhandled: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="disue-fuzz-") as place:
        targets = make_targets(Path(place) / "targets")
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES * 2**30, GIGABYTES * 2**30))
        weights = sum(target.weight for target in targets)
        for target in targets:
            if not target.name.startswith(tuple(arguments.only.split(","))):
                continue
            wanted = max(1, round(arguments.inputs * target.weight / weights))
            counts, started, seed = [0, 0], time.perf_counter(), arguments.seed
            while sum(counts) < wanted:
                seed += 1
                try:
                    fed = feed(target, min(SLICE, wanted - sum(counts)), seed)
                except Exception as error:
                    traceback.print_exception(error)
                    unhandled[target.name] = f"seed {seed}: {type(error).__name__}: {error}"[:500]
                    break
                counts = [a + b for a, b in zip(counts, fed, strict=True)]
            seconds = round(time.perf_counter() - started, 1)
            results[target.name] = {"taken": counts[0], "refused": counts[1], "seconds": seconds}
            print(f"{target.name}: {results[target.name]}", file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    fed_in_all = sum(int(result["taken"] + result["refused"]) for result in results.values())
    print(json.dumps({"inputs": fed_in_all, "unhandled": unhandled, "peak_mb": peak, "targets": results}))
    return 1 if unhandled else 0


if __name__ == "__main__":
    sys.exit(main())
