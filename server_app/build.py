"""From a run config to a run: its Flower strategy with all parts, and what watches it."""

import math
from collections.abc import Sequence
from functools import partial
from logging import WARNING

import torch
from flwr.common.logger import log
from flwr.serverapp import Grid

from disue.data import RunData
from disue.device import prepare_device
from disue.models import build_model, num_parameters, trained, travelling
from disue.models.check import check_networks
from disue.signature import NOTHING, SignatureParts, told_beside_updates
from server_app.callbacks.base import Callback, RunContext
from server_app.callbacks.checkpoint import Checkpointing
from server_app.callbacks.ledger import Ledger
from server_app.callbacks.progress import Progress
from server_app.callbacks.recorder import Recorder
from server_app.callbacks.report_data import ReportData
from server_app.callbacks.results import Results
from server_app.callbacks.tensorboard import Events
from server_app.callbacks.warning_log import Warnings
from server_app.checks import check_groups, needs_sketch
from server_app.config import RunConfig
from server_app.doubts import doubts
from server_app.pages import Pages
from server_app.resume import ResumePoint
from server_app.rows import Rows
from server_app.run_data import prepare_data
from server_app.run_directory import default_directory
from strategies.aggregation.limits import Limits
from strategies.aggregation.store import UpdateStore
from strategies.clustering.similarity import SIGNATURES
from strategies.flower import FederatedStrategy
from strategies.methods import METHODS
from strategies.methods.parts import Parts
from strategies.rounds.collecting import Collector, PlainCollector, SecureCollector
from strategies.rounds.registry import ClientRegistry
from strategies.rounds.secure_sums import SecureSums
from strategies.rounds.stats import Participation


def make_run(config: RunConfig, grid: Grid, registry: ClientRegistry, past: ResumePoint) -> RunContext:
    """Build what a run is made of, as it was left if the run goes on.

    Raises
    ------
    ConfigError, DataError
        If the config does not go with what the clients are and have.
    """
    device = prepare_device(config.device)
    data = prepare_data(config, registry)
    check_groups(config, data)
    store = UpdateStore(config.reply_memory * 2**20, default_directory(config))
    strategy = make_strategy(config, registry, data, device, store, f"{grid.run.run_id:016x}")
    rows = Rows(data.task.metric_names, past.rows)
    past.restore({"strategy": strategy, "rows": rows})
    if past.saved and strategy.method.needs.memory:
        log(
            WARNING,
            "clients go on with what they kept in the rounds before only where their nodes have a state-path, and not "
            "after a run that was completed",
        )
    return RunContext(config, grid, strategy, data, data.global_test(), device, rows)


def make_strategy(
    config: RunConfig,
    registry: ClientRegistry,
    data: RunData,
    device: torch.device,
    store: UpdateStore | None = None,
    run: str = "",
) -> FederatedStrategy:
    """Build the configured method and its Flower strategy.

    ``store``: where the clients' models of a round are kept. ``run``: as in `FederatedStrategy`.

    Raises
    ------
    ConfigError
        If the method cannot work with the clients' models.
    """
    task, noisy = data.task, config.privacy == "dp"
    check_task = partial(check_networks, shape=task.shape, num_outputs=task.num_outputs, noisy=noisy)
    check_task({config.model, *(client.model for client in registry.known)})
    check_name = registry.check_model

    def check_newcomer(model: str) -> None:
        check_name(model)
        check_task([model])

    registry.check_model = check_newcomer
    for doubt in doubts(config, data):
        log(WARNING, doubt)
    parts = Parts(config, data, device)
    method = METHODS[config.method].build(parts)
    needs = method.needs
    covariance = told_beside_updates(config) if needs.covariance else ""
    told = SignatureParts(data.task.num_strata, covariance) if needs.prototypes else NOTHING
    if config.privacy == "secure":
        sums = SecureSums(config.secure_threshold, config.sketch_size * needs_sketch(config))
        collector: Collector = SecureCollector(sums, told)
    else:
        limits = Limits(config.max_examples, config.max_norm, config.clip_norm, parts.caps)
        collector = PlainCollector(limits, store, told)
    described_as = _described_as(config, data, needs.description) if needs.description else None
    told_run = run if needs.memory or needs.description else ""
    return FederatedStrategy(registry, _participation(config), method, collector, described_as, told_run)


def _described_as(config: RunConfig, data: RunData, signature: str) -> tuple[int, int] | None:
    """Return the shape of what clients say of their data."""
    if config.privacy == "secure":
        return 1, config.sketch_size
    shape, task = SIGNATURES[signature].shape, data.task
    model = build_model(config.model, task.shape, task.num_outputs, config.seed)
    parameters = num_parameters(trained(travelling(model)))
    return shape and shape(task.num_strata, model.head.in_features, math.prod(task.shape), parameters)


def _participation(config: RunConfig) -> Participation:
    return Participation(
        num_rounds=config.num_server_rounds,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        evaluate_every=config.evaluate_every,
        min_success_fraction=config.min_success_fraction,
    )


def make_callbacks(
    config: RunConfig, past: ResumePoint, warnings: Warnings, own: Sequence[Callback] = ()
) -> list[Callback]:
    """Return what watches a run, in the order in which it is called.

    Who sees the progress file finds the rows. A round's row is recorded after `Ledger` added to it, and before the
    checkpoint with which the round counts. At the end the summary, which says that a run is completed, comes after the
    results, and the pages, which tell of all that, come last.

    Parameters
    ----------
    config : RunConfig
    past : ResumePoint
    warnings : Warnings
        Those that were logged until now.
    own : sequence of Callback
        Called after a row is recorded.
    """
    report_data = ReportData(past.moves)
    past.restore({"report_data": report_data})
    return [
        warnings,
        *([Ledger()] if config.privacy == "dp" else []),
        Results(),
        report_data,
        Recorder(),
        Progress(default_directory(config), config.num_server_rounds),
        *own,
        *([Events()] if config.tensorboard else []),
        Checkpointing(past.checkpoints, {"report_data": report_data}),
        Pages(),
    ]
