"""One run, from the validated config to the finished run directory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from logging import INFO, WARNING

from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

from disue.data import OWN, build_federation
from disue.device import prepare_device
from disue.errors import ConfigError, DiskError
from disue.files import disk_errors
from disue.models import get_state
from disue.models.check import check_networks
from disue.naming import by_name
from disue.wire import HelloRequest
from server_app.build import make_callbacks, make_run
from server_app.callbacks.base import Callback, OnRound, RunContext, RunEnd
from server_app.callbacks.checkpoint import Checkpoints
from server_app.callbacks.ledger import check_accountant
from server_app.callbacks.tensorboard import check_tensorboard
from server_app.callbacks.warning_log import collected
from server_app.checks import check_groups, check_main_model, check_model, check_names, check_sizes
from server_app.config import RunConfig
from server_app.resume import ResumePoint, look_back
from server_app.rows import Row, summary_of
from server_app.run_data import check_own_data, check_summary, unfit
from server_app.run_directory import check_directory, default_directory, forget_after, write_config
from server_app.run_lock import exclusive, in_use, is_held
from server_app.scoring import Scores, by_clients, on_test_set
from server_app.stopping import RunStopped, check_stop, stopping
from strategies.aggregation.caps import Caps
from strategies.distillation.proxy import look_at_proxy
from strategies.methods.base import MethodState
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
    check_own_data(config, num_clients)
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
    if num_clients is not None and config.dataset != OWN:
        federation = build_federation(config, num_clients)
        check_groups(config, federation)
        task, noisy = federation.task, config.privacy == "dp"
        check_networks(config.models_of_clients, task.shape, task.num_outputs, noisy)
        if config.proxy != "generator":
            look_at_proxy(config, federation)  # what there is to tell belongs into the run's own log


def execute(
    config: RunConfig,
    grid: Grid,
    on_round: Callable[[Row], object] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Row:
    """Run the configured method over the grid and write the run directory, or go on with a run that was interrupted.

    Parameters
    ----------
    config : RunConfig
        With ``resume-from``, that of the run that goes on.
    grid : Grid
        Flower's own, or the in-process one.
    on_round : callable, optional
        Called with each row of ``metrics.jsonl`` as it is written.
    callbacks : sequence of Callback
        They watch the run, beside those that every run has.

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
        registry = gather(config, grid, past)
        run = make_run(config, grid, registry, past)
        own = [*([OnRound(on_round)] if on_round else []), *callbacks]
        watching = make_callbacks(config, past, warnings, own)
        with claimed(run, past):
            begun, end = run_rounds(run, watching)
            return leave(run, begun, end, past)


def gather(config: RunConfig, grid: Grid, past: ResumePoint) -> ClientRegistry:
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


@contextmanager
def claimed(run: RunContext, past: ResumePoint) -> Iterator[None]:
    """Hold the run directory, in which nobody may have written since it was looked at, and write ``config.toml``.

    Raises
    ------
    ConfigError
        If somebody did, or does.
    """
    directory, resumed = run.directory, bool(run.config.resume_from)
    if not resumed:
        check_directory(directory)  # before the lock is put there, too
    with disk_errors(directory), exclusive(directory, "resume-from" if resumed else "output-dir"):
        if resumed:
            past.check_unchanged(directory)
        else:
            check_directory(directory)
        with stopping(directory):
            forget_after(directory, past.rounds)
            write_config(directory, run.config, run.data.task, run.strategy.registry.known)
            yield


def run_rounds(run: RunContext, callbacks: Sequence[Callback]) -> tuple[list[Callback], RunEnd]:
    """Carry out the rounds that are still to do; return the callbacks that have begun, and how the run ends."""
    begun: list[Callback] = []
    try:
        with run.during:
            for callback in callbacks:
                callback.begin(run)
                begun.append(callback)
            log(INFO, "run directory: %s", run.directory)
            run.strategy.start(
                run.grid,
                ArrayRecord(get_state(run.model(run.config.model))),
                num_rounds=run.config.num_server_rounds,
                timeout=run.config.round_timeout,
                evaluate_fn=partial(_after_round, run, callbacks, Caps(run.config.max_weight)),
                first_round=len(run.rows.done) + 1,
            )
    except RunStopped:
        log(INFO, "the run ends early, as was asked; to go on with it: resume-from=%s", run.directory)
        why = f"it was asked to end after round {len(run.rows.done)}"
        return begun, RunEnd(_summary(run, "stopped", why), run.strategy.reached())
    except BaseException as error:
        state = run.strategy.reached() if _has_good_rounds(error, run) else None
        return begun, _failed(run, error, state)
    return begun, RunEnd(_summary(run, "completed"), run.strategy.reached())


def leave(run: RunContext, callbacks: Sequence[Callback], end: RunEnd, past: ResumePoint) -> Row:
    """End the callbacks, and return the contents of ``summary.json``; raise what the run, or one of them, failed with.

    After an error the run has failed for the callbacks that follow. Of several errors the first is raised, and the
    others are logged.
    """
    for callback in callbacks:
        try:
            callback.end(run, end)
        except BaseException as error:
            if end.error is not None:  # a full disk is the error itself
                log(WARNING, "not all could be written that the run has so far: %s", _words(error))
            end = _failed(run, end.error or error, None)
    if end.error is None:
        return end.summary
    if past.can_go_on:
        log(WARNING, "to go on with the run after its last checkpoint: resume-from=%s", run.directory)
    raise end.error


def _after_round(
    run: RunContext, callbacks: Sequence[Callback], caps: Caps, server_round: int, arrays: ArrayRecord
) -> MetricRecord | None:
    strategy = run.strategy
    row = run.rows.add(strategy.stats, _scores(run, caps), strategy.registry.known)
    for callback in callbacks:
        callback.after_round(run, row)
    if server_round < run.config.num_server_rounds:
        check_stop(run.directory)
    return MetricRecord({key: row[key] for key in ("universal_accuracy", "expert_accuracy") if row[key] is not None})


def _scores(run: RunContext, caps: Caps) -> Scores:
    """Return how good the universal models are after a round."""
    strategy, main = run.strategy, run.config.model
    if run.test is None:
        alike = run.config.privacy == "secure"  # then all say that they have one
        return by_clients(strategy.stats.evaluations, strategy.registry.models, main, caps, alike)
    universals, average = strategy.reached().universals, strategy.stats.averages[main]
    return on_test_set(run.data.task, universals, average, run.model, main, run.test, run.device)


def _has_good_rounds(error: BaseException, run: RunContext) -> bool:
    """Return whether a run that failed has models to give: those of the last round that is recorded.

    Not where somebody wants it to end at once, or the disk is the trouble.
    """
    wanted = isinstance(error, Exception) and not isinstance(error, OSError | DiskError)
    return wanted and 0 < len(run.rows.done) == run.strategy.stats.server_round


def _failed(run: RunContext, error: BaseException, state: MethodState | None) -> RunEnd:
    return RunEnd(_summary(run, "failed", _words(error)), state, error)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _summary(run: RunContext, status: str, why: str = "") -> Row:
    return summary_of(run.config, len(run.strategy.registry.known), run.rows.done, status, why)


def check_timeout(config: RunConfig, grid: Grid) -> None:
    """Raise `ConfigError` for a timeout in which no reply can come over a network."""
    if isinstance(grid, HttpGrid) and config.round_timeout < SHORTEST_TIMEOUT:
        raise ConfigError(
            f"round-timeout: got {config.round_timeout:g}; a reply takes some seconds to be fetched, "
            f"use at least {SHORTEST_TIMEOUT:g}"
        )
