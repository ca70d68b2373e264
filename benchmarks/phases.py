"""Where phase U loses: what average, evidence, gate, experts, teacher and student are worth in each round of a run.

    python benchmarks/phases.py --scenario rotation --seeds 100,101 --set dataset=fashion-mnist

All are looked at on the test sets of all clients together:

- average, student: as they are, and with calibrated heads; universal: what came of both, with a calibrated head.
- evidence: what the discriminant says of the classes. gated vote: the experts, each as far as the discriminant takes a
  sample for its clients'. teacher: both.
- oracle gate: each sample by the expert of the cluster whose client it is of, without that client's label prior.
- share: how much of the student clients take.

Prints a table in Markdown, a column for each round, of means over the seeds. It is for method `disue` with
``teacher=discriminant`` and clients of one architecture.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a package of another that is called benchmarks

import torch
from torch import Tensor

from benchmarks.arguments import assignment, seeds
from disue.assignments import parse_assignments
from disue.data import Federation, build_federation
from disue.errors import DisueError
from disue.models import State
from disue_cli.compare.tables import markdown
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig
from strategies.aggregation.caps import Caps
from strategies.distillation.server import ProxySet
from strategies.distillation.teachers import discriminant_teacher, vote
from strategies.methods.base import METHODS, Step
from strategies.methods.disue import DisUE
from strategies.methods.disue_settings import DisUESettings
from strategies.methods.disue_state import DisUEState
from strategies.rounds.round import Round
from strategies.updates import Contribution

Row = dict[str, float]


class Looked(DisUE):
    """`DisUE` whose rounds are looked at.

    Attributes
    ----------
    federation : Federation
        Whose clients' test sets are looked at.
    rows : list of dict
        What each round came to.
    """

    federation: Federation
    rows: list[Row]

    def step(self, state: DisUEState, updates: Sequence[Contribution], round: Round) -> Step[DisUEState]:
        """Take the step, and look at what it came to."""
        students: dict[str, State] = {}

        def best_shares(
            taught: Mapping[str, State], averages: Mapping[str, State], caps: Caps, unit: float
        ) -> Mapping[str, float]:
            students.update(taught)
            return round.best_shares(taught, averages, caps, unit)

        step = super().step(state, updates, replace(round, best_shares=best_shares))
        average = step.averages[self.main]
        self.rows.append(self.look(step.state, average, students.get(self.main, average), round.number))
        self.rows[-1]["share"] = float(step.metrics.get("student_share", 0.0))
        return step

    def look(self, state: DisUEState, average: State, student: State, number: int) -> Row:
        """Return the accuracies."""
        names = [f"client-{i}" for i in range(self.federation.num_clients)]
        tests = [self.federation.client(i).test for i in range(len(names))]
        x, y = torch.cat([own.x for own in tests]), torch.cat([own.y for own in tests])
        clusters = torch.tensor([state.clusters[name] for name, own in zip(names, tests, strict=True) for _ in own.y])

        def right(logits: Tensor) -> float:
            return float((logits.argmax(dim=1) == y).double().mean())

        found: Row = {}
        proxy = self.distillation.proxy.inputs(state.proxy, number)
        for name, model in (("average", average), ("student", student)):
            found[name] = right(self.server.logits(model, x))
            known = {0: list(state.knowledge.told)}
            calibrated = self.heads.calibrated(state.knowledge, {0: model}, self.main, known, proxy, number, 1.0)
            found[f"{name}, calibrated"] = right(self.server.logits(calibrated.get(0, model), x))
        found["universal"] = right(self.server.logits(state.universals[self.main], x))
        ensemble = self.ensemble(state, {team.cluster for team in state.experts})
        voters = ensemble.voters
        inputs = ensemble.inputs(ProxySet(x))
        weighing = discriminant_teacher(inputs)
        priors = torch.stack([state.priors[team] for team in voters])
        assert weighing.evidence is not None
        found["evidence"] = right(weighing.evidence())
        found["gated vote"] = right(vote(inputs.expert_logits, weighing, priors))
        found["teacher"] = right(vote(inputs.expert_logits, weighing, priors, self.distillation.evidence_weight))
        own = torch.stack([clusters == team.cluster for team in voters]).unsqueeze(2)
        found["oracle gate"] = right(((inputs.expert_logits - priors.unsqueeze(1)) * own).sum(dim=0))
        return found


def rows_of(values: Mapping[str, object], clients: int, directory: Path) -> list[Row]:
    """Carry out one run in a directory, and return what each round came to."""
    with METHODS.scope():
        METHODS.register("looked", DisUESettings)(Looked)
        config = RunConfig.from_flower({**values, "method": "looked", "output-dir": str(directory), "report": False})
        Looked.federation, Looked.rows = build_federation(config, clients), []
        run_inline(config, clients)
        return Looked.rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="rotation", help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=20, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=seeds, default="100,101", help="a count, a list or ranges; default: %(default)s"
    )
    parser.add_argument("--set", type=assignment, action="append", default=[], help="KEY=VALUE of the run config")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = {"scenario": arguments.scenario, **parse_assignments(arguments.set)}
    with tempfile.TemporaryDirectory() as place:
        try:
            runs = [
                rows_of(values | {"seed": seed}, arguments.clients, Path(place) / str(seed)) for seed in arguments.seeds
            ]
        except DisueError as error:
            parser.error(str(error))
    lines = [
        [name, *(f"{mean(row[name] for row in rows):.3f}" for rows in zip(*runs, strict=True))] for name in runs[0][0]
    ]
    print(markdown(["round", *map(str, range(1, len(runs[0]) + 1))], lines))


if __name__ == "__main__":
    main()
