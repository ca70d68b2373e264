"""How much accuracy which epsilon costs: runs of ``privacy=dp`` in this process, and a table in Markdown.

    python benchmarks/privacy.py --noise 0.003,0.01,0.03,0.1,0.3,1 --seeds 3 [--clients 12] [--set key=value]...

The universal accuracy is the server's. What clients measure leaves them noisy; the accuracies of the experts here are
those that they measured, which only a simulation can look at.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

from benchmarks.arguments import assignment, seeds
from client_app.release.noisy import NoisyRelease
from disue.assignments import parse_assignments
from disue.tasks import Task
from disue.wire import EvaluateReply
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig

COLUMNS = ("dp-noise", "epsilon", "releases", "universal", "own expert", "clusters", "ari")


def measure(settings: dict[str, Any], clients: int) -> dict[str, float]:
    """Return what a run comes to, with the accuracies before they were made noisy."""
    measured: list[float] = []
    evaluation = NoisyRelease.evaluation

    def watched(self: NoisyRelease, reply: EvaluateReply, task: Task) -> EvaluateReply:
        measured.append(reply.expert_accuracy)
        return evaluation(self, reply, task)

    NoisyRelease.evaluation = watched  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as directory:
            config = RunConfig.from_flower({**settings, "output-dir": str(Path(directory) / "run"), "report": False})
            summary = run_inline(config, clients)
    finally:
        NoisyRelease.evaluation = evaluation  # type: ignore[method-assign]
    return {
        "epsilon": summary.get("epsilon", float("inf")),
        "releases": summary.get("releases", 0),
        "universal": summary["universal_accuracy"],
        "own expert": mean(measured[-clients:]) if measured else summary["expert_accuracy"],
        "clusters": summary["num_clusters"],
        "ari": float("nan") if summary["ari"] is None else summary["ari"],
    }


def main() -> None:
    """Print the table, a line for each amount of noise as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", default="0.003,0.01,0.03,0.1,0.3,1", help="values of dp-noise, between commas")
    parser.add_argument("--seeds", type=seeds, default="3", help="a count, a list or ranges; default: %(default)s")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    settings = parse_assignments(arguments.set)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for noise in [None, *map(float, arguments.noise.split(","))]:
        private = {} if noise is None else {"privacy": "dp", "dp-noise": noise}
        runs = [measure({**settings, **private, "seed": seed}, arguments.clients) for seed in arguments.seeds]
        means = {key: mean(run[key] for run in runs) for key in COLUMNS[1:]}
        print(
            f"| {'plain' if noise is None else f'{noise:g}'} | {means['epsilon']:,.3g} | {means['releases']:.0f} | "
            f"{means['universal']:.3f} | {means['own expert']:.3f} | {means['clusters']:.1f} | {means['ari']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
