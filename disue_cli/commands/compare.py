"""`disue compare`: methods x scenarios x seeds, side by side."""

import fcntl
import os
import re
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from disue.assignments import parse_assignments, parse_seeds
from disue.config.data import DataSettings
from disue.errors import ConfigError, DisueError, FederationError
from disue.files import folder_inside, open_itself
from disue_cli.compare.cells import Cell, Summary, cores, run_cells, seconds_left
from disue_cli.compare.numbers import Reported, setting
from disue_cli.compare.presets import chosen, targets
from disue_cli.compare.tables import write_results, write_table
from disue_cli.views import is_live, number
from server_app.config import RunConfig

T = TypeVar("T", int, str)


def compare(
    methods: str | None,
    preset_name: str | None,
    scenarios: str | None,
    seeds: str,
    datasets: str | None,
    clients: int | None,
    assignments: list[str],
    workers: int | None,
    output: Path,
    target_accuracy: float | None = None,
) -> None:
    """Run and report a comparison; see ``disue compare --help``.

    Raises
    ------
    ConfigError, DataError
        Before anything is started or written.
    FederationError
        If a cell fails; the others are finished and reported.
    """
    output = _checked(output)
    given = {"methods": methods, "scenarios": scenarios, "datasets": datasets}
    axes = {name: tuple(_words(f"--{name}", text)) for name, text in given.items() if text is not None}
    wanted, remark = chosen(preset_name, axes, clients, parse_assignments(assignments))
    reported = Reported(wanted.last_rounds, targets(wanted, target_accuracy))
    cells = make_cells(
        labels=wanted.methods,
        scenarios=wanted.scenarios,
        seeds=parse_seeds(seeds),
        datasets=wanted.datasets,
        clients=wanted.clients,
        values=dict(wanted.settings),
        root=output / "cells",
    )
    console = Console(highlight=False, markup=False)
    if preset_name is not None:
        for line in filter(None, (remark, f"preset {preset_name}: {setting(cells)}")):
            console.print(line, soft_wrap=True)
    cells = _applicable(cells, console)
    _preflight(cells, console)
    with locked(output):
        known = {cell.name: summary for cell in cells if (summary := cell.summary())}
        pending = [cell for cell in cells if cell.name not in known]
        workers = min(workers or cores(), max(1, len(pending)))
        console.print(f"{len(cells)} runs, {len(known)} of them finished before; {workers} workers", soft_wrap=True)
        started = time.monotonic()
        try:
            failed = _run(pending, known, cells, workers, console) if pending else []
        finally:
            _report([(cell, known[cell.name]) for cell in cells if cell.name in known], output, reported, console)
    ran = len(pending) - len(failed)
    console.print(f"{ran} runs took {duration(time.monotonic() - started)} with {workers} workers", soft_wrap=True)
    if failed:
        raise FederationError(f"{len(failed)} of {len(cells)} runs failed, the first was {failed[0].name}")


def make_cells(
    labels: Sequence[str],
    scenarios: Sequence[str],
    seeds: Sequence[int],
    datasets: Sequence[str],
    clients: int,
    values: dict[str, object],
    root: Path,
) -> list[Cell]:
    """Return a cell per dataset, seed, scenario and method.

    Raises
    ------
    ConfigError
        If a key or value is wrong, or belongs to the comparison's own axes, or would give one method other data or
        another budget than the others.
    """
    axes = {"method": "--methods", "scenario": "--scenarios", "seed": "--seeds", "dataset": "--datasets"}
    cells = []
    for dataset in datasets:
        for seed in seeds:
            for scenario_label in scenarios:
                scenario, data = _parse_label("--scenarios", "scenario", scenario_label, shared_scenario_keys())
                for label in labels:
                    method, own = _parse_label("--methods", "method", label, shared_keys())
                    settings = {"report": False} | values | data | own
                    for key in settings.keys() & {*axes, "output-dir", "resume-from"}:
                        raise ConfigError(f"{key}: cannot be set in a comparison; use {axes.get(key, '--output')}")
                    axis_values = {"method": method, "scenario": scenario, "seed": seed, "dataset": dataset}
                    config = RunConfig.from_flower(settings | axis_values)
                    cells.append(Cell(dataset, scenario_label, label, config, clients, root))
    _distinct("--methods", [cell.name for cell in cells])
    return cells


def _parse_label(option: str, kind: str, label: str, refused: Container[str]) -> tuple[str, dict[str, object]]:
    name, *words = re.split(r":(?=[a-z0-9-]+=)", label)  # a value may have a colon: proxy=dataset:mnist
    if ":" in name:
        raise ConfigError(f"{option}: got '{label}'; expected {kind.upper()} or {kind.upper()}:KEY=VALUE")
    own = parse_assignments(words)
    for key in own:
        if key in refused:
            raise ConfigError(f"{option}: {key} cannot be set for one {kind} alone, use --set")
    return name, own


def shared_keys() -> frozenset[str]:
    """Return what all methods of a comparison have alike: the run, its data, its local budget and who takes part."""
    return frozenset(key for own in RunConfig.complete().sections() if own.shared for key in own.own_keys())


def shared_scenario_keys() -> frozenset[str]:
    """Return what all scenarios of a comparison have alike: all but how the data are divided."""
    return frozenset(RunConfig.complete().declared_keys()) - (DataSettings.own_keys().keys() - {"dataset", "data-dir"})


def duration(seconds: float) -> str:
    """Return seconds as a person would say them.

    Examples
    --------
    >>> duration(42.3), duration(200), duration(7500)
    ('42 s', '3 min 20 s', '2 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"{option}: got '{text}'; expected one name or more, separated by commas")
    return _distinct(option, words)


def _distinct(option: str, values: list[T]) -> list[T]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{option}: {twice[0]} is given twice")
    return values


def _checked(output: Path) -> Path:
    """Return the directory; raise `ConfigError` if it holds something else, or cannot be written."""
    from server_app.run_directory import check_directory, default_directory

    directory = default_directory(RunConfig.from_flower({"output-dir": str(output)}))
    if (directory / "cells").is_dir():
        check_directory(directory / "cells" / "new")
    else:
        check_directory(directory)
    return directory


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other comparisons out of the directory, which is made if need be."""
    lock = folder_inside(output, "cells") / ".lock"
    with os.fdopen(open_itself(lock, os.O_RDWR | os.O_CREAT), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--output: another comparison is running in '{output}'") from None
        yield


def _report(finished: list[tuple[Cell, Summary]], output: Path, reported: Reported, console: Console) -> None:
    if not finished:
        return
    from disue_cli.compare.plots import write_plots

    write_results(finished, output / "results.csv", reported)
    write_table(finished, output / "table.md", reported)
    write_plots(finished, output / "plots")
    console.print(f"results.csv, table.md and plots/ are in {output}", soft_wrap=True)
    if len({summary["source"] for _, summary in finished}) > 1:
        console.print("some of the runs are older than the present code; delete cells/ to run all anew", soft_wrap=True)


def _applicable(cells: list[Cell], console: Console) -> list[Cell]:
    """Leave out what must know planted groups in scenarios that have none, and say so."""
    from disue.data import build_federation
    from server_app.checks import check_names
    from strategies.methods.chosen import Chosen

    left_out = set()
    kept = []
    for cell in cells:
        check_names(cell.config)
        if Chosen(cell.config).naming(lambda uses: uses.planted_groups):
            federation = build_federation(cell.config, cell.clients)
            if not federation.has_groups:
                left_out.add((cell.label, cell.scenario))
                continue
        kept.append(cell)
    for label, scenario in sorted(left_out):
        console.print(f"{label} is left out of {scenario}, which plants no groups", soft_wrap=True)
    if not kept:
        raise ConfigError("--methods: none of them can run in these scenarios")
    return kept


def _preflight(cells: list[Cell], console: Console) -> None:
    """Check one cell of each kind before any runs, and say what is doubtful in them."""
    from disue.data import build_federation
    from server_app.doubts import doubts
    from server_app.run import preflight

    kinds = {(cell.dataset, cell.scenario, cell.label): cell for cell in reversed(cells)}
    for cell in kinds.values():
        preflight(cell.config.model_copy(update={"output_dir": str(cell.root / "new")}), cell.clients)
    found = [
        line for cell in kinds.values() for line in doubts(cell.config, build_federation(cell.config, cell.clients))
    ]
    for line in dict.fromkeys(found):
        console.print(f"warning: {line}", soft_wrap=True, markup=False)


def _run(
    pending: list[Cell], known: dict[str, Summary], cells: list[Cell], workers: int, console: Console
) -> list[Cell]:
    left = {cell.name: cell for cell in pending}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=not is_live(console),
    )
    task = progress.add_task("runs", total=len(cells), completed=len(known), left="")

    def time_left() -> str:
        finished = [(cell, known[cell.name]) for cell in cells if cell.name in known]
        seconds = seconds_left(list(left.values()), finished, workers)
        return "" if seconds is None or not left else f"about {duration(seconds)} left"

    def on_done(cell: Cell, result: Summary | DisueError) -> None:
        del left[cell.name]
        if isinstance(result, DisueError):
            outcome = f"failed: {result}"
        else:
            known[cell.name] = result
            outcome = (
                f"universal {number(result['universal_accuracy'])}  expert {number(result['expert_accuracy'])}  "
                f"{result['wall_seconds']:.1f} s"
            )
        remaining = time_left()
        progress.update(task, advance=1, left=remaining)
        where = f"{cell.dataset}  {cell.scenario}  {cell.label}  seed {cell.seed}"
        counted = f"[{len(cells) - len(left)}/{len(cells)}]"
        plain = f"  ({remaining})" if remaining and not is_live(console) else ""
        console.print(f"{counted}  {where}  {outcome}{plain}", soft_wrap=True, markup=False)

    with progress:
        progress.update(task, left=time_left())
        return run_cells(pending, workers, on_done)
