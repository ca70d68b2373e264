"""What lies cost honest clients: the kinds of runs, what is too much, the results file, and the table of the page."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from disue.data import OWN
from disue.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
MOST_LOST = 0.05
"""What an honest client may lose of its accuracy."""
RESULTS, PAGE = ROOT / "docs" / "results" / "lies.csv", ROOT / "docs" / "ROBUSTNESS.md"
MARKER = "<!-- lies -->\n"
Row = dict[str, Any]


class Mode(NamedTuple):
    """A kind of run.

    Attributes
    ----------
    settings : dict
        Run config keys.
    again : tuple of str
        Message types whose fields are tried though a mode before has them. Else only the fields that none has.
    bounded : bool
        Whether a lie may cost honest clients little.
    """

    settings: dict[str, Any]
    again: tuple[str, ...] = ()
    bounded: bool = True


OF_OWN_DATA = {"dataset": OWN, "input-shape": "1x8x8", "proxy": "dataset:digits", "num-server-rounds": 10}
"""With five rounds the experts of a run in which one client names more classes are behind by more than `MOST_LOST`."""
QUICK = {"num-server-rounds": 3}
MODES: dict[str, Mode] = {
    "plain": Mode({}),
    "ifca": Mode({"clusterer": "ifca"}),
    "own-data": Mode(OF_OWN_DATA, again=("query",)),
    "subspace": Mode({"signature": "subspace"}, again=("query.describe",)),
    "stocfl": Mode({"method": "stocfl"}),
    "ccvr": Mode({"method": "ccvr"}),
    "packed": Mode({"clients-per-node": 2}),
    "secure": Mode({"privacy": "secure", **QUICK}, bounded=False),
    "secure-update": Mode({"privacy": "secure", "signature": "update", **QUICK}, bounded=False),
    "dp": Mode({"privacy": "dp", **QUICK}, again=("query.describe", "train"), bounded=False),
}


OF_ROBUST_RUNS = {"robust": True, "num-server-rounds": 10}
"""With five rounds a run in which one client of a cluster of four is refused is behind by more than `MOST_LOST`."""


def settings_of(mode: str, robust: bool) -> dict[str, Any]:
    """Return the run config keys of a mode, for a lie against which ``robust`` is set or not."""
    return MODES[mode].settings | (OF_ROBUST_RUNS if robust else {})


class Accuracies(NamedTuple):
    """Of each honest client's own expert, and of the universal expert."""

    experts: dict[int, float]
    universal: float


def worst(before: Accuracies, after: Accuracies) -> float:
    """Return how much the honest client lost that lost most; one that is no part of the run any more lost all."""
    return max(accuracy - after.experts.get(client, 0.0) for client, accuracy in before.experts.items())


class Loss(NamedTuple):
    """What one run with a lie cost; ``experts``: the honest client that lost most; None: the run failed.

    ``field`` and ``value`` are empty in a run in which nobody lies.
    """

    mode: str
    robust: bool
    seed: int
    field: str
    value: str
    experts: float | None
    universal: float | None
    error: str = ""


def losses(rows: Iterable[Row]) -> list[Loss]:
    """Return what each lie cost, against the run of the same settings and seed without one."""
    rows = list(rows)
    honest = {(row["mode"], row["robust"], row["seed"]): row for row in rows if "field" not in row}
    found = []
    for row in rows:
        name = (row["mode"], row["robust"], row["seed"])
        before, what = honest[name], (row.get("field", ""), row.get("value", ""))
        if "error" in row or "error" in before:
            found.append(Loss(*name, *what, None, None, row.get("error", "so did that without a lie")))
        else:
            pair = (Accuracies(own["experts"], own["universal"]) for own in (before, row))
            found.append(Loss(*name, *what, round(worst(*pair), 4), round(before["universal"] - row["universal"], 4)))
    return found


def write_losses(path: Path, found: Iterable[Loss]) -> None:
    """Write what the lies cost, without the runs in which nobody lies."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Loss._fields)
        writer.writerows(loss for loss in found if loss.field)


def read_losses(path: Path) -> list[Loss]:
    """Read what `write_losses` wrote."""
    with path.open(newline="") as file:
        return [
            Loss(
                mode=row["mode"],
                robust=row["robust"] == "True",
                seed=int(row["seed"]),
                field=row["field"],
                value=row["value"],
                experts=float(row["experts"]) if row["experts"] else None,
                universal=float(row["universal"]) if row["universal"] else None,
                error=row["error"],
            )
            for row in csv.DictReader(file)
        ]


def offences(found: Iterable[Loss]) -> list[str]:
    """Return a line for each run that failed, and for each in which an honest client lost too much."""
    lines = []
    for loss in found:
        name = f"{loss.mode}{' robust' if loss.robust else ''} seed {loss.seed}: "
        name += f"{loss.field} = {loss.value}" if loss.field else "nobody lies"
        if loss.experts is None:
            lines.append(f"{name}: the run failed: {loss.error}")
        elif loss.experts > MOST_LOST and MODES[loss.mode].bounded:
            lost = f"an honest client lost {loss.experts:.3f} of its accuracy"
            lines.append(f"{name}: {lost}; at most {MOST_LOST} is allowed")
    return lines


def table(found: Iterable[Loss]) -> str:
    """Return a Markdown table: of each field in each mode, the largest losses over all values and seeds."""
    head = ["run config", "message, record, field", "runs", "failed", "experts", "with", "universal", "with"]
    lines = [head, ["---"] * len(head)]
    fields: dict[tuple[str, str, bool], list[Loss]] = {}
    for loss in found:
        if loss.field:
            fields.setdefault((loss.mode, loss.field, loss.robust), []).append(loss)
    order = list(MODES)
    for (mode, field, robust), own in sorted(fields.items(), key=lambda item: (order.index(item[0][0]), item[0][1:])):
        told = [loss for loss in own if loss.experts is not None]
        cells = [*_largest(told, "experts"), *_largest(told, "universal")]
        settings = settings_of(mode, robust) | ({"robust": "true"} if robust else {})
        words = " ".join(f"`{key}={value}`" for key, value in settings.items()) or "defaults"
        lines.append([words, field, str(len(own)), str(len(own) - len(told)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _largest(told: Sequence[Loss], which: str) -> tuple[str, str]:
    """Return the largest loss and the value that cost it; the value is left out where there is no loss."""
    if not told:
        return "–", "–"
    most = max(told, key=lambda loss: getattr(loss, which))
    lost = getattr(most, which)
    return f"{lost:.3f}", f"`{most.value}`" if lost > 0.0 else "–"


def filled(page: str, lines: str) -> str:
    """Return a page with the table after its marker; raise `DataError` if it has no marker."""
    before, marker, rest = page.partition(MARKER)
    if not marker:
        raise DataError(f"the page has no line {MARKER.strip()}; put it where the table belongs")
    return f"{before}{marker}{lines}\n\n{rest.partition(chr(10) * 2)[2] if rest.startswith('|') else rest.lstrip()}"
