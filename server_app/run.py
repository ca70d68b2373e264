"""One run, from the validated config to the finished run directory."""

from collections.abc import Callable
from functools import partial
from logging import INFO

from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.superlink.grid.http_grid import HttpGrid

from disue.config import RunConfig
from disue.data import OWN, build_federation, load_dataset
from disue.device import prepare_device
from disue.errors import ConfigError
from disue.models import build_model, get_state
from server_app.card import write_card
from server_app.events import Events, check_tensorboard
from server_app.methods import check_groups, check_main_model, check_model, check_names, check_sizes, make_strategy
from server_app.portrait import Portrait
from server_app.progress import Progress
from server_app.recorder import Recorder, Row, check_directory, default_directory
from server_app.report import write_report
from server_app.scoring import by_clients, on_test_set
from server_app.tasks import check_own_data, check_summary, prepare_data
from strategies.proxies import load_proxy
from strategies.roster import Roster

SHORTEST_TIMEOUT = 10.0
"""Seconds: Flower looks for replies every three, and nodes for messages about as often."""


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
    prepare_device(config.device)
    check_directory(default_directory(config))
    if num_clients is not None:
        check_sizes(config, num_clients)
        check_main_model(config, (config.client_model(i, num_clients) for i in range(num_clients)))
        federation = build_federation(config, num_clients)
        check_groups(config, federation)
        if config.proxy != "generator":
            load_proxy(config, federation)


def execute(config: RunConfig, grid: Grid, on_round: Callable[[Row], None] | None = None) -> Row:
    """Run the configured method over the grid and write the run directory.

    Parameters
    ----------
    config : RunConfig
    grid : Grid
        Flower's own, or the in-process one.
    on_round : callable, optional
        Called with each row of ``metrics.jsonl`` as it is written.

    Returns
    -------
    dict
        The contents of ``summary.json``.

    Raises
    ------
    DisueError
        If the run cannot start or cannot go on.
    """
    preflight(config)
    check_timeout(config, grid)
    device = prepare_device(config.device)
    roster = Roster(config.seed, config.round_timeout, partial(check_model, config), partial(check_summary, config))
    roster.gather(grid, config.min_clients, config.join_timeout)
    clients = roster.clients
    check_sizes(config, len(clients))
    check_main_model(config, (client.model for client in clients))
    data = prepare_data(config, roster)
    check_groups(config, data)
    strategy = make_strategy(config, roster, data, device)
    build = partial(build_model, shape=data.task.shape, num_classes=data.task.num_classes, seed=config.seed)
    start = get_state(build(config.model))
    test = data.global_test()
    recorder = Recorder(default_directory(config), config, data.task, clients, on_round)
    portrait = Portrait(recorder.directory)
    progress = Progress(recorder.directory, config.num_server_rounds)
    strategy.on_phase = progress.phase
    events = Events(recorder.directory, strategy) if config.tensorboard else None
    log(INFO, "run directory: %s", recorder.directory)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        if test is None:
            scores = by_clients(strategy.outcome.evaluations, roster.models, config.model)
        else:
            scores = on_test_set(strategy, build, config.model, test, device)
        portrait.after_round(strategy.outcome)
        row = recorder.record_round(strategy.outcome, roster.clients, scores)
        if events:
            events.after_round(row, strategy.outcome)
        return MetricRecord(
            {key: row[key] for key in ("universal_accuracy", "expert_accuracy") if row[key] is not None}
        )

    try:
        with progress.watching(grid):
            strategy.start(
                grid,
                ArrayRecord(start),
                num_rounds=config.num_server_rounds,
                timeout=config.round_timeout,
                evaluate_fn=after_round,
            )
        summary = recorder.finish(strategy)
        portrait.finish(strategy, data, test, build, config.model, device)
    except BaseException as error:
        recorder.fail(error)
        raise
    finally:
        if events:
            events.close()
    write_card(recorder.directory)
    if config.report:
        write_report(recorder.directory)
    return summary


def check_timeout(config: RunConfig, grid: Grid) -> None:
    """Raise `ConfigError` for a timeout in which no reply can come over a network."""
    if isinstance(grid, HttpGrid) and config.round_timeout < SHORTEST_TIMEOUT:
        raise ConfigError(
            f"round-timeout: got {config.round_timeout:g}; a reply takes some seconds to be fetched, "
            f"use at least {SHORTEST_TIMEOUT:g}"
        )
