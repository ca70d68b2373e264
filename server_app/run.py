"""One run, from the validated config to the finished run directory."""

from collections.abc import Callable
from functools import partial
from logging import INFO

from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.config import RunConfig
from disue.data import build_federation
from disue.device import prepare_device
from disue.errors import FederationError
from disue.metrics import Score, score
from disue.models import State, build_model, get_state
from server_app.events import Events, check_tensorboard
from server_app.methods import check_groups, check_main_model, check_model, check_names, check_sizes, make_strategy
from server_app.portrait import Portrait
from server_app.progress import Progress
from server_app.recorder import Recorder, Row, check_directory, default_directory
from server_app.report import write_report
from strategies.proxies import load_proxy
from strategies.roster import Client, Roster


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
    device = prepare_device(config.device)
    roster = Roster(config.seed, config.round_timeout, partial(check_model, config))
    roster.gather(grid, config.min_clients, config.join_timeout)
    clients = roster.clients
    check_sizes(config, len(clients))
    check_main_model(config, (client.model for client in clients))
    federation = build_federation(config, _agreed_partitions(clients))
    check_groups(config, federation)
    strategy = make_strategy(config, roster, federation, device)
    build = partial(
        build_model, shape=federation.dataset.shape, num_classes=federation.dataset.num_classes, seed=config.seed
    )
    start = get_state(build(config.model))
    test = federation.global_test()
    recorder = Recorder(default_directory(config), config, clients, on_round)
    portrait = Portrait(recorder.directory)
    progress = Progress(recorder.directory, config.num_server_rounds)
    strategy.on_phase = progress.phase
    events = Events(recorder.directory, strategy) if config.tensorboard else None
    log(INFO, "run directory: %s", recorder.directory)

    def evaluate(state: State, name: str = config.model) -> Score:
        model = build(name)
        model.load_state_dict(state)
        return score(model, test, device)

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        universal = evaluate(strategy.universal)
        average = universal if strategy.average is strategy.universal else evaluate(strategy.average)
        others = {name: evaluate(state, name) for name, state in strategy.universals.items() if name != strategy.model}
        portrait.after_round(strategy.outcome)
        row = recorder.record_round(strategy.outcome, roster.clients, universal, average, others)
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
        portrait.finish(strategy, federation, test, build, config.model, device)
        summary = recorder.finish(strategy)
    except BaseException as error:
        recorder.fail(error)
        raise
    finally:
        if events:
            events.close()
    if config.report:
        write_report(recorder.directory)
    return summary


def _agreed_partitions(clients: list[Client]) -> int:
    partitions = {client.num_partitions for client in clients}
    if len(partitions) > 1:
        raise FederationError(
            f"num-partitions: the clients disagree on it ({sorted(partitions)}); give all nodes the same"
        )
    return partitions.pop()
