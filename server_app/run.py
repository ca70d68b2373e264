"""One run, from the validated config to the finished run directory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

from disue.data import OWN, build_federation, load_dataset
from disue.device import prepare_device
from disue.errors import ConfigError, DiskError, DisueError
from disue.files import disk_errors
from disue.models import build_model, get_state
from disue.models.check import check_networks
from disue.naming import by_name
from disue.wire import HelloRequest
from server_app.build import make_strategy
from server_app.callbacks.checkpoint import Checkpoints
from server_app.callbacks.ledger import Ledger, check_accountant
from server_app.callbacks.progress import Progress
from server_app.callbacks.recorder import Recorder, Row, check_directory, default_directory, forget_after
from server_app.callbacks.report_data import ReportData
from server_app.callbacks.tensorboard import Events, check_tensorboard
from server_app.callbacks.warning_log import Warnings, collected
from server_app.card import write_card
from server_app.checks import check_groups, check_main_model, check_model, check_names, check_sizes
from server_app.config import RunConfig
from server_app.report import write_report
from server_app.resume import ResumePoint, look_back
from server_app.run_data import check_own_data, check_summary, prepare_data, unfit
from server_app.run_lock import exclusive, in_use, is_held
from server_app.scoring import by_clients, on_test_set
from server_app.stopping import RunStopped, check_stop, stopping
from strategies.aggregation.caps import Caps
from strategies.aggregation.store import UpdateStore
from strategies.distillation.proxy import look_at_proxy
from strategies.flower import FederatedStrategy
from strategies.methods.chosen import Chosen
from strategies.rounds.packing import seated
from strategies.rounds.registry import ClientRegistry

SHORTEST_TIMEOUT = 10.0
"""Seconds: nodes look for messages every three, and start a process for each."""


def preflight(config: RunConfig, num_clients: int | None = None) -> None:
    """Check all that can be checked before a client is asked, data files included.

    Parameters
    ----------
    config : RunConfig
    num_clients : int, optional
        Where it is known beforehand, as in a simulation.

    Raises
    ------
    ConfigError, DataError
        One line that names the key, the value and what is allowed.
    """
    check_names(config)
    if num_clients is not None and config.dataset == OWN:
        load_dataset(OWN)  # raises: a simulation has none
    check_own_data(config)
    if config.tensorboard:
        check_tensorboard()
    if config.privacy == "dp":
        check_accountant()
    prepare_device(config.device)
    if config.resume_from:
        look_back(config)
        if is_held(default_directory(config)):
            raise ConfigError(in_use(default_directory(config)))
    else:
        check_directory(default_directory(config))
    if num_clients is not None:
        check_sizes(config, num_clients)
        check_main_model(config, (config.client_model(i, num_clients) for i in range(num_clients)))
        federation = build_federation(config, num_clients)
        check_groups(config, federation)
        check_networks(config.models_of_clients, federation.task.shape, federation.task.num_outputs)
        if config.proxy != "generator":
            look_at_proxy(config, federation)  # what there is to tell belongs into the run's own log


def execute(config: RunConfig, grid: Grid, on_round: Callable[[Row], None] | None = None) -> Row:
    """Run the configured method over the grid and write the run directory, or go on with a run that was interrupted.

    Parameters
    ----------
    config : RunConfig
        With ``resume-from``, that of the run that goes on.
    grid : Grid
        Flower's own, or the in-process one.
    on_round : callable, optional
        Called with each row of ``metrics.jsonl`` as it is written.

    Returns
    -------
    dict
        The contents of ``summary.json``; ``status`` is ``stopped`` if the run was asked to end before its last round.

    Raises
    ------
    DisueError
        If the run cannot start or cannot go on.
    """
    if not config.resume_from:  # once: a default place is named after the time
        config = config.model_copy(update={"output_dir": str(default_directory(config))})
    preflight(config)
    check_timeout(config, grid)
    grid = seated(grid, config.clients_per_node)
    past = look_back(config) if config.resume_from else ResumePoint(Checkpoints(default_directory(config)))
    with collected() as warnings, past.blamed():
        past.tell()
        return _carry_out(config, grid, past, on_round, warnings)


def _carry_out(
    config: RunConfig, grid: Grid, past: ResumePoint, on_round: Callable[[Row], None] | None, warnings: Warnings
) -> Row:
    device, directory = prepare_device(config.device), default_directory(config)
    registry = _gathered(config, grid, past)
    data = prepare_data(config, registry)
    check_groups(config, data)
    store, run = UpdateStore(config.reply_memory * 2**20, directory), f"{grid.run.run_id:016x}"
    strategy = make_strategy(config, registry, data, device, store, run)
    method = strategy.method
    past.restore({"strategy": strategy})
    if past.saved and method.needs.memory:
        log(
            WARNING,
            "clients go on with what they kept in the rounds before only where their nodes have a state-path, and not "
            "after a run that was completed",
        )
    task = data.task
    build = partial(build_model, shape=task.shape, num_outputs=task.num_outputs, seed=config.seed)
    start = get_state(build(config.model))
    test, caps = data.global_test(), Caps(config.max_weight)
    with _claimed(config, directory, past):
        forget_after(directory, past.rounds)
        recorder = Recorder(directory, config, task, registry.known, on_round, past.rows)
        warnings.keep_in(directory, past.rounds, lambda: recorder.rounds + 1)
        report_data = ReportData(directory, past.moves)
        past.restore({"recorder": recorder, "report_data": report_data})
        parts = {"registry": registry, "strategy": strategy, "recorder": recorder, "report_data": report_data}
        progress = Progress(directory, config.num_server_rounds)
        strategy.on_phase = progress.phase
        ledger = Ledger(directory, config, registry.name_of, past.rounds)
        events = Events(directory, task, method.proxy, past.rounds) if config.tensorboard else None
        log(INFO, "run directory: %s", directory)

        def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if test is None:
                alike = config.privacy == "secure"  # then all say that they have one
                scores = by_clients(strategy.stats.evaluations, registry.models, config.model, caps, alike)
            else:
                average = strategy.averages[config.model]
                scores = on_test_set(task, strategy.reached().universals, average, build, config.model, test, device)
            report_data.after_round(strategy.stats)
            strategy.stats.metrics |= ledger.spent()
            row = recorder.record_round(strategy.stats, registry.known, scores)
            if events:
                events.after_round(row, strategy.stats)
            past.checkpoints.save(server_round, parts)
            if server_round < config.num_server_rounds:
                check_stop(directory)
            return MetricRecord(
                {key: row[key] for key in ("universal_accuracy", "expert_accuracy") if row[key] is not None}
            )

        def leave() -> None:
            state = strategy.reached()
            gate = method.gate(state, strategy.descriptions)
            recorder.save(state, config.model, gate, strategy.stats.evaluations)
            groups = {client.name: client.group for client in registry.clients}
            signatures = method.signatures(state)
            report_data.finish(
                state.universals[config.model], signatures, groups, data, test, build, config.model, device
            )

        over = False
        try:
            write_summary = recorder.finish
            try:
                with progress.watching(grid), ledger.watching(grid):
                    strategy.start(
                        grid,
                        ArrayRecord(start),
                        num_rounds=config.num_server_rounds,
                        timeout=config.round_timeout,
                        evaluate_fn=after_round,
                        first_round=past.rounds + 1,
                    )
            except RunStopped:
                log(INFO, "the run ends early, as was asked; to go on with it: resume-from=%s", directory)
                write_summary = recorder.stop
            over = True
            leave()
            summary = write_summary()
        except BaseException as error:
            try:
                recorder.fail(error)
                if not over and _has_good_rounds(error, recorder, strategy):
                    leave()
                    _tell(config, directory)
            except DisueError as another:  # a full disk is the error itself
                log(WARNING, "not all could be written that the run has so far: %s", another)
            if past.checkpoints.has_saved or past.saved:
                log(WARNING, "to go on with the run after its last checkpoint: resume-from=%s", directory)
            raise
        finally:
            if events:
                events.close()
        _tell(config, directory)
        return summary


@contextmanager
def _claimed(config: RunConfig, directory: Path, past: ResumePoint) -> Iterator[None]:
    """Hold the run directory, in which nobody may have written since it was looked at.

    Raises
    ------
    ConfigError
        If somebody did, or does.
    """
    if not config.resume_from:
        check_directory(directory)  # before the lock is put there, too
    with disk_errors(directory), exclusive(directory, "resume-from" if config.resume_from else "output-dir"):
        if config.resume_from:
            past.check_unchanged(directory)
        else:
            check_directory(directory)
        with stopping(directory):
            yield


def _has_good_rounds(error: BaseException, recorder: Recorder, strategy: FederatedStrategy) -> bool:
    """Return whether a run that failed has models to give: those of the last round that is recorded.

    Not where somebody wants it to end at once, or the disk is the trouble.
    """
    wanted = isinstance(error, Exception) and not isinstance(error, OSError | DiskError)
    return wanted and 0 < recorder.rounds == strategy.stats.server_round


def _tell(config: RunConfig, directory: Path) -> None:
    """Write the model card, and the report if it is wished."""
    write_card(directory)
    if config.report:
        write_report(directory)


def _gathered(config: RunConfig, grid: Grid, past: ResumePoint) -> ClientRegistry:
    """Return the clients that are to take part, those who took part before and are missing now included."""
    registry = ClientRegistry(
        config.seed,
        config.round_timeout,
        partial(check_model, config),
        partial(check_summary, config),
        partial(unfit, config),
        past.partitions,
        _hello(config),
    )
    past.restore({"registry": registry})
    registry.gather(grid, config.min_clients, config.join_timeout)
    for name in by_name(registry.away):
        log(WARNING, "client %s is not there; going on without it", name)
    check_sizes(config, len(registry.known))
    check_main_model(config, (client.model for client in registry.known))
    return registry


def _hello(config: RunConfig) -> HelloRequest:
    """Return what every node is asked first: it says what the run will ask for."""
    chosen = Chosen(config)
    described = chosen.signature is not None and chosen.signature.from_update is None
    return HelloRequest(chosen.method.needs.prototypes, described)


def check_timeout(config: RunConfig, grid: Grid) -> None:
    """Raise `ConfigError` for a timeout in which no reply can come over a network."""
    if isinstance(grid, HttpGrid) and config.round_timeout < SHORTEST_TIMEOUT:
        raise ConfigError(
            f"round-timeout: got {config.round_timeout:g}; a reply takes some seconds to be fetched, "
            f"use at least {SHORTEST_TIMEOUT:g}"
        )
