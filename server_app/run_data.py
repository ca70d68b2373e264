"""What the server knows of the run's data: a dataset that it divides, or what clients with their own agree on."""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.common.logger import log
from torch import Tensor

from disue.data import OWN, Examples, RunData, build_federation, load_dataset
from disue.data.rehearsal import clients_below
from disue.errors import ConfigError, DataError
from disue.files import user_path
from disue.naming import quoted
from disue.tasks import DataSummary, ImageClassification, Task, agree
from disue.tasks.classification import doubts, require_known
from server_app.config import RunConfig
from strategies.aggregation.caps import Caps, capped
from strategies.distillation.proxy import find_images
from strategies.methods import METHODS
from strategies.rounds.registry import Client, ClientRegistry

MORE_CLASSES, FEW_CLASSES = 10.0, 10.0
"""A client may have so many times as many classes as the others in the middle, counted as at least so many."""

NO_HOLDOUT = (
    f"proxy: got 'holdout'; with dataset '{OWN}' the server has no data to hold out, "
    "use path:DIR (images), dataset:NAME or generator"
)


@dataclass(frozen=True)
class AgreedData:
    """Data that the clients have and the server has not."""

    task: Task
    has_groups: bool = False

    def global_test(self) -> Examples | None:
        """Return None: only the clients can test."""
        return None

    def proxy(self) -> Tensor:
        """Raise `ConfigError`: the server holds nothing out."""
        raise ConfigError(NO_HOLDOUT)


def check_own_data(config: RunConfig, num_clients: int | None) -> None:
    """Raise `ConfigError` or `DataError` where the config does not go with clients that have data of their own.

    ``num_clients``: in a simulation; None: clients are on machines of their own.
    """
    if config.dataset != OWN:
        if config.own_data:
            raise ConfigError(
                f"own-data: got '{config.own_data}'; the dataset is '{config.dataset}', use dataset={OWN}"
            )
        return
    if num_clients is not None:
        _check_rehearsal(config, num_clients)
    if config.client_models:
        raise ConfigError(
            f"client-models: got '{config.client_models}'; with dataset '{OWN}' leave it empty, "
            "and put model into node configs"
        )
    if not METHODS[config.method].uses.proxies:
        return
    kind, _, where = config.proxy.partition(":")
    if kind == "holdout":
        raise ConfigError(NO_HOLDOUT)
    if kind == "path":
        find_images(user_path(where, "proxy"))
    elif kind == "dataset":
        load_dataset(where, config.data_dir)


def _check_rehearsal(config: RunConfig, num_clients: int) -> None:
    if not config.own_data:
        load_dataset(OWN)  # raises: a simulation has none
    there = len(clients_below(config.own_data))
    if there != num_clients:
        raise ConfigError(f"own-data: '{config.own_data}' has {there} clients' data; got {num_clients}, use {there}")


def check_summary(config: RunConfig, summary: DataSummary | None, task: ImageClassification | None) -> None:
    """Raise `DataError` for a client whose data are not those that the run is about.

    Parameters
    ----------
    config : RunConfig
    summary : DataSummary or None
        What the client says of data that are its own.
    task : ImageClassification or None
        What the clients agreed on, once they have.
    """
    if config.dataset != OWN:
        if summary is not None:
            raise DataError(
                f"the client has data of its own; the run's dataset is '{config.dataset}', use dataset={OWN}"
            )
        return
    if summary is None:
        raise DataError(f"the client has no data of its own; dataset={OWN} needs name and data-path in its node config")
    if len(summary.mean) != config.shape[0]:
        raise DataError(f"the client's images have {len(summary.mean)} channels; input-shape is {config.input_shape}")
    known = task.class_names if task else config.class_names
    if known:
        require_known(summary.class_names, known)


def unfit(config: RunConfig, clients: Sequence[Client], task: ImageClassification | None) -> dict[str, str]:
    """Return who cannot take part beside the others, and why.

    Parameters
    ----------
    config : RunConfig
    clients : sequence of Client
        They said hello, and each of them is right by itself.
    task : ImageClassification or None
        What clients with their own data agreed on; who does not go with it is refused when it says hello.
    """
    if config.dataset != OWN:
        wrong = {number: _why_not_divided(config, number) for number in {client.num_partitions for client in clients}}
        return {client.name: why for client in clients if (why := wrong[client.num_partitions])}
    return {} if task or config.classes else _too_many_classes(clients)


def _why_not_divided(config: RunConfig, number: int) -> str:
    """Return why the dataset cannot be divided into so many parts; raise `DataError` if not into any number."""
    if number < 1:
        return f"num-partitions: got {number}; use at least 1"
    try:
        build_federation(config, number)
    except DataError as error:
        build_federation(config, 1)
        return f"num-partitions: got {number}; {error}"
    return ""


def _too_many_classes(clients: Sequence[Client]) -> dict[str, str]:
    """Return who names far more classes than the others, by which every model would grow."""
    named = {client.name: float(len(client.summary.class_names)) for client in clients if client.summary}
    return {
        name: f"it has {named[name]:.0f} classes, beside the other clients' at most {most:.0f} are allowed; "
        "name all of them with the run config key 'classes'"
        for name, most in capped(named, MORE_CLASSES, usual=FEW_CLASSES).items()
        if named[name] > most
    }


def prepare_data(config: RunConfig, registry: ClientRegistry) -> RunData:
    """Return the run's data; from here on the registry tells clients with their own what they agree on, or agreed on.

    Raises
    ------
    DataError
        If a dataset is missing or too small, or the clients have fewer than two classes.
    """
    clients = registry.clients
    if config.dataset != OWN:
        return build_federation(config, clients[0].num_partitions)  # the same for all: `ClientRegistry` sees to it
    registry.task = registry.task or _agreed_task(config, registry)
    log(INFO, "%s classes: %s", registry.task.num_classes, quoted(registry.task.class_names))
    _warn_of_classes(config, registry.task, registry.clients)
    return AgreedData(registry.task)


def _warn_of_classes(config: RunConfig, task: ImageClassification, clients: list[Client]) -> None:
    """Log where there are nearly as many classes as examples: in all, or else at one of the clients."""
    told = [client for client in clients if client.summary is not None and client.num_examples > 0]
    if len(told) == len(clients) and (doubt := doubts(task.num_classes, sum(one.num_examples for one in told))):
        log(WARNING, "all clients together have %s", doubt)
    elif config.privacy == "plain":  # else each client is said to have all classes
        for client in told:
            if client.summary and (doubt := doubts(len(client.summary.class_names), client.num_examples)):
                log(WARNING, "%s has %s", client.name, doubt)


def _agreed_task(config: RunConfig, registry: ClientRegistry) -> ImageClassification:
    clients = registry.clients
    told = {client.name: client.summary for client in clients if client.summary is not None}
    claimed = {client.name: float(max(client.num_examples, 1)) for client in clients}
    counted = Caps(config.max_weight).examples(claimed)
    return agree([(counted[name], summary) for name, summary in told.items()], config.shape, config.class_names)
