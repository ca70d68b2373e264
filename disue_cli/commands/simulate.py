"""`disue simulate`: check, run, show."""

import math
import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from disue.assignments import parse_assignments
from disue.data import OWN
from disue.data.rehearsal import clients_below, is_pool
from disue.errors import ConfigError, DataError
from disue.files import inside, user_path
from disue_cli.views import is_live, number, told_through, view_of
from disue_cli.watching import followed
from server_app.config import RunConfig

if TYPE_CHECKING:
    from server_app.report.reading import RunRecord

Row = dict[str, Any]
USUAL_CLIENTS = 12


def simulate(
    clients: int | None,
    engine: str,
    gpus_per_client: float,
    assignments: list[str],
    data: Path | None,
    output: Path | None,
    resume: Path | None,
    baselines: list[str],
) -> None:
    """Run one simulation, and its baselines; see ``disue simulate --help``.

    A first SIGINT or SIGTERM ends it after its round.

    Raises
    ------
    ConfigError, DataError
        Before anything is started or written.
    FederationError
        If the run fails.
    """
    values = parse_assignments(assignments)
    for key, place in (("output-dir", output), ("resume-from", resume)):
        if place is not None:
            values[key] = str(place)
    if data is not None:
        values |= _own_data(data, values)
    config = RunConfig.from_flower(values)

    from disue_cli.engines.inline import nodes_for
    from server_app.run import preflight
    from server_app.run_directory import default_directory

    done, over = 0, False
    if config.resume_from:
        config, clients, done, over = _resumed(values, clients, bool(baselines))
    if config.own_data:
        clients = clients or len(clients_below(config.own_data))
    clients = clients or USUAL_CLIENTS
    _check_gpus(config, engine, gpus_per_client)
    places = {"output_dir": str(default_directory(config))}
    for key in ("data_dir", "own_data"):
        if where := getattr(config, key):
            places[key] = os.path.abspath(os.path.expanduser(where))  # the engine runs elsewhere
    for key in ("dataset", "proxy"):
        kind, _, where = getattr(config, key).partition(":")
        if kind == "path":
            places[key] = f"path:{os.path.abspath(os.path.expanduser(where))}"
    config = config.model_copy(update=places)
    nodes_for(config, clients)
    if not over:
        preflight(config, clients)
    runs = [*([] if over else [(config, done)]), *_baselines(config, clients, baselines)]

    console = Console(highlight=False, markup=False)
    stopped, own = "", True
    for one, done in runs:
        summary = _carry_out(one, clients, engine, gpus_per_client, console, done)
        if summary["status"] != "completed":
            own = one is config
            stopped = f"stopped after round {summary['rounds']} of {one.num_server_rounds}"
            stopped = stopped if own else f"{one.method} {stopped}"
            break
    _show(config, console, bool(baselines) and not (stopped and own))
    if stopped:
        words = ["disue", "simulate", "--engine", engine, "--resume", config.output_dir]
        words += [word for method in dict.fromkeys(baselines) for word in ("--baseline", method)]
        console.print(f"{stopped}; to go on: {shlex.join(words)}", soft_wrap=True)


def _own_data(data: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--data`` stands for: a folder of clients, or a pool that the scenario divides.

    Raises
    ------
    ConfigError
        If another dataset is named, too.
    DataError
        If the place cannot be read.
    """
    place = user_path(data, "--data")
    try:
        found = {"dataset": f"path:{data}"} if is_pool(place) else {"dataset": OWN, "own-data": str(data)}
    except OSError as error:
        raise DataError(f"--data: '{data}' cannot be read ({error.strerror})") from None
    if values.get("dataset", found["dataset"]) != found["dataset"]:
        raise ConfigError(f"dataset: got '{values['dataset']}' beside --data, which is dataset={found['dataset']}")
    return found


def _baselines(config: RunConfig, clients: int, methods: list[str]) -> list[tuple[RunConfig, int]]:
    """Return the configs of the baselines that are still to be run, and how many of their rounds are over.

    Raises
    ------
    ConfigError
        For one that cannot be run, or cannot go on.
    """
    from server_app.report.reading import BASELINES
    from server_app.resume import RunCompleted, look_back
    from server_app.run import preflight

    pending = []
    for method in dict.fromkeys(methods):
        if method == config.method:
            raise ConfigError(f"--baseline: got '{method}', which is the run's own method; name another one")
        place = Path(config.output_dir) / BASELINES / method
        begun = (place / "config.toml").exists()
        values = {"method": method, "output_dir": str(place), "resume_from": str(place) if begun else ""}
        other = config.model_copy(update=values | {"report": False})
        try:
            if begun:
                _partitions(other, clients)
            inside(Path(config.output_dir), f"{BASELINES}/{method}")
            preflight(other, clients)
            pending.append((other, look_back(other).rounds if begun else 0))
        except RunCompleted:
            continue
        except ConfigError as error:
            raise ConfigError(f"--baseline {method}: {error}") from None
    return pending


def _carry_out(
    config: RunConfig,
    clients: int,
    engine: str,
    gpus_per_client: float,
    console: Console,
    done: int = 0,
) -> Row:
    """Show one run, of which so many rounds are done, and return its summary."""
    from disue_cli.engines.inline import nodes_for, run_inline
    from disue_cli.engines.ray import run_ray
    from server_app.stopping import signals_stop

    console.print(
        f"{config.method} on {config.dataset}, scenario {config.scenario_name}: {clients} clients, "
        f"{config.num_server_rounds} rounds, seed {config.seed}, engine {engine}"
        + (f", going on after round {done}" if done else ""),
        soft_wrap=True,
    )
    directory, rounds = Path(config.output_dir), config.num_server_rounds
    if engine == "ray":
        console.print("starting Flower's simulation (half a minute) ...", style="dim")
    signals = signals_stop(directory, [signal.SIGINT, signal.SIGTERM], noticed=is_live(console))
    inline = engine == "inline"  # then this process says itself what the run warns of
    with view_of(console, directory.name, done) as view, followed(directory, view, rounds, not inline), signals:
        if inline:
            with told_through(view):
                summary = run_inline(config, clients)
        else:
            summary = run_ray(config, nodes_for(config, clients), gpus_per_client, lambda row: None)
    return summary


def _show(config: RunConfig, console: Console, compared: bool) -> None:
    """Print the table of a run and where its files are; with baselines write the pages anew before."""
    from server_app.callbacks.warning_log import WARNINGS
    from server_app.card import write_card
    from server_app.report import read_run, write_report

    directory = Path(config.output_dir)
    if compared:
        write_card(directory)
        if config.report:
            write_report(directory)
    record = read_run(directory)
    console.print(summary_table(record, config.num_server_rounds))
    for name, why in record.unlike.items():
        again = shlex.join(["disue", "simulate", "--resume", config.output_dir, "--baseline", name])
        console.print(f"{name} is not compared with: {why}; to bring it up to the run: {again}", soft_wrap=True)
    if config.report:
        console.print(f"report: {directory / 'report.html'}", soft_wrap=True)
    if (directory / WARNINGS).exists():
        console.print(f"warnings: {directory / WARNINGS}", soft_wrap=True)
    console.print(f"artefacts: {config.output_dir}", soft_wrap=True)


def _resumed(values: dict[str, Any], clients: int | None, compared: bool) -> tuple[RunConfig, int, int, bool]:
    """Return the config of the run that is to go on, its number of clients, how many rounds are over, and if all are.

    Of a run that is completed only baselines can go on.
    """
    from server_app.resume import RunCompleted, look_back, resumed_config

    config = resumed_config(values)
    try:
        done, over = look_back(config).rounds, False
    except RunCompleted:
        if not compared:
            raise
        done, over = config.num_server_rounds, True
    return config, _partitions(config, clients), done, over


def _partitions(config: RunConfig, clients: int | None) -> int:
    """Return how many clients the run in ``resume-from`` has; raise `ConfigError` if not as many as are wished."""
    from server_app.resume import read_settings

    _, partitions = read_settings(Path(config.resume_from))
    if config.own_data:
        partitions = len(clients_below(config.own_data))
    if not partitions:
        raise ConfigError(f"resume-from: the run in '{config.resume_from}' is no simulation; use disue run")
    if clients not in (None, partitions):
        raise ConfigError(f"--clients: got {clients}; the run in '{config.resume_from}' has {partitions}")
    return partitions


def _check_gpus(config: RunConfig, engine: str, gpus_per_client: float) -> None:
    import torch

    if not math.isfinite(gpus_per_client):
        raise ConfigError(f"--gpus-per-client: got {gpus_per_client}; expected a number, at least 0")
    if gpus_per_client and not torch.cuda.is_available():
        raise ConfigError(f"--gpus-per-client: got {gpus_per_client:g}; torch sees no GPU here, use 0")
    if engine == "ray" and config.device == "cuda" and not gpus_per_client:
        raise ConfigError("device: got 'cuda'; the ray engine gives clients a GPU with --gpus-per-client above 0 only")


def summary_table(record: "RunRecord", rounds: int) -> Table:
    """Return what a run came to after some of its rounds, as a person reads it."""
    from server_app.report.words import AVERAGE, interval

    summary = record.summary

    def sure(key: str, of: Row, words: str) -> str:
        known = interval(record, key, of.get(key))
        return f"{words}; {known}" if known else words

    of = "" if summary["rounds"] == rounds else f" of {rounds}"
    table = Table(title=f"{summary['method']} after {summary['rounds']}{of} rounds", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    universal, expert, prefix = "universal_accuracy", "expert_accuracy", "universal_accuracy_"
    table.add_row("universal accuracy", number(summary[universal]), sure(universal, summary, "one model for anyone"))
    for key in (key for key in summary if key.startswith(prefix)):
        words = sure(key, summary, "the same of this size")
        table.add_row(f"universal accuracy, {key.removeprefix(prefix)}", number(summary[key]), words)
    table.add_row(
        "average accuracy", number(summary["average_accuracy"]), sure("average_accuracy", summary, f"the {AVERAGE}")
    )
    table.add_row("expert accuracy", number(summary[expert]), sure(expert, summary, "own expert on own test data"))
    table.add_row("personal accuracy", number(summary["personal_accuracy"]), "own expert, fine-tuned")
    table.add_row("worst-decile accuracy", number(summary["worst_decile_accuracy"]), "own expert, worst tenth")
    for name, other in record.baselines.items():
        words = sure(universal, other, "a run of it: same clients, same seed")
        table.add_row(f"{name}: universal accuracy", number(other.get(universal)), words)
        table.add_row(f"{name}: expert accuracy", number(other.get(expert)), "what a client uses, on own test data")
    table.add_row("clusters", str(summary["num_clusters"]), "found by the server")
    table.add_row("ari", number(summary["ari"], 2), "agreement with planted groups")
    if "epsilon" in summary:
        spent = f"of the client that released most, {summary['releases']} times, at delta {summary['delta']:g}"
        table.add_row("epsilon", f"{summary['epsilon']:.3g}", spent)
    return table
