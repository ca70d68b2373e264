"""What the records share: a request's config, and reading what came, with the reason where it is refused."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from disue.errors import FederationError, WireError, one_line, quoted_value
from disue.fields import Arrays, Other, fields_of, wire_name
from disue.objective import LocalLoss, LocalObjective
from disue.source import client_hash
from disue.tasks import ImageClassification

PROTOCOL = 2
"""The number of the protocol. The server says it in hello, and a client that has another one refuses to take part.

Raise it by one when a message changes: a field or a kind of message is new, gone, renamed, or means something else. The
form of ``protocol`` in hello stays, so that all versions can read it.
"""
SAME_VERSION = "install the same version of DisUE on both, and start the client where there is no other copy of it"
LONGEST_REASON = 1000
T = TypeVar("T")


def make_config(
    server_round: int, objective: LocalObjective, task: ImageClassification | None = None, **flags: bool
) -> ConfigRecord:
    """Return the config that goes with a model: which round it is, what clients minimise, and what they should do."""
    return ConfigRecord(
        {
            "source-hash": client_hash(),
            "server-round": server_round,
            **_objective_values(objective),
            **flags,
            **task_values(task),
        }
    )


def _objective_values(objective: LocalObjective) -> dict[str, str | float | int]:
    """Return what a request's config says of the objective: what few methods have is told where they have it."""
    usual: dict[str, str | float | int] = {"local-loss": objective.local_loss, "prox-mu": objective.prox_mu}
    rare: dict[str, float | int] = {"second-mu": objective.second_mu, "head-epochs": objective.head_epochs}
    return usual | {key: value for key, value in rare.items() if value}


def task_values(task: ImageClassification | None) -> dict[str, list[str] | list[int] | list[float]]:
    """Return what a request's config says of the task; nothing where clients know it."""
    if task is None:
        return {}
    return {
        "class-names": list(task.class_names),
        "shape": list(task.shape),
        "mean": list(task.mean),
        "std": list(task.std),
    }


def read_task(config: ConfigRecord) -> ImageClassification | None:
    """Return the task that a request's config tells, if any."""
    if "class-names" not in config:
        return None
    names, shape, mean, std = (setting(config, key, list) for key in ("class-names", "shape", "mean", "std"))
    try:
        return ImageClassification(tuple(names), tuple(shape), tuple(mean), tuple(std))
    except (ValueError, TypeError) as error:
        raise WireError(f"the request's task is refused: {error}") from None


def require_protocol(message: Message) -> None:
    """Raise `FederationError` if a hello is of another protocol than this process speaks."""
    servers = _config(message).get("protocol")
    if servers != PROTOCOL:
        told = "none, which is older than 1" if servers is None else quoted_value(servers)
        raise FederationError(f"protocol: the server says {told}, this client {PROTOCOL}; {SAME_VERSION}")


def read_config(message: Message) -> ConfigRecord:
    """Return the request's config, or refuse it when it comes from other source code than this process runs."""
    config = _config(message)
    servers, own = config.get("source-hash"), client_hash()
    if servers != own:
        raise FederationError(
            f"this client runs other source code ({_code(own, PROTOCOL)}) than the server "
            f"({_code(servers, config.get('protocol'))}); {SAME_VERSION}"
        )
    return config


def _config(message: Message) -> ConfigRecord:
    try:
        return message.content.config_records["config"]
    except KeyError:
        raise WireError("the request has no 'config' record") from None


def _code(source: object, protocol: object) -> str:
    """Return the beginning of a hash of source code, and the protocol, which hello alone says."""
    return f"{source!s:.8}" + ("" if protocol is None else f", protocol {protocol}")


def read_objective(config: ConfigRecord) -> LocalObjective:
    """Return what clients minimise, from a request's config."""
    loss, prox_mu = config.get("local-loss"), config.get("prox-mu")
    if loss not in get_args(LocalLoss) or not isinstance(prox_mu, int | float):
        raise WireError(f"the request's local-loss is {loss!r} and its prox-mu {prox_mu!r}; expected both")
    second_mu = setting(config, "second-mu", float) if "second-mu" in config else 0.0
    head_epochs = setting(config, "head-epochs", int) if "head-epochs" in config else 0
    return LocalObjective(loss, prox_mu, second_mu, head_epochs)  # type: ignore[arg-type]


def setting(config: ConfigRecord, key: str, kind: type[T]) -> T:
    """Return a setting of a request; raise `WireError` if it is missing or of another type."""
    value = config.get(key)
    if type(value) is not kind:
        raise WireError(f"the request's {key} is {value!r}; expected {kind.__name__}")
    return value


def read_fields(kind: type, message: Message, *names: str) -> dict[str, Any]:
    """Return the numbers and texts of a record, by attribute, as its fields allow them; ``names``: only these.

    Raises
    ------
    WireError
        For the first field that is missing or not allowed.
    """
    values: dict[str, Any] = {}
    for attribute, (field, optional) in fields_of(kind).items():
        if isinstance(field, Arrays | Other) or (names and attribute not in names):
            continue
        key, record = wire_name(attribute), _record(message, field.record, optional)
        if key in record:
            values[attribute] = field.check(record[key], key)
        elif not optional:
            raise field.refuse(None, key)
    return values


def _record(message: Message, name: str, optional: bool) -> Mapping[str, Any]:
    """Return a record of a message; an empty one if it is not there and may be left out."""
    records: Mapping[str, Any] = message.content.metric_records if name == "metrics" else message.content.config_records
    if name not in records and not optional:
        raise WireError(f"the message has no '{name}' record")
    found: Mapping[str, Any] = records.get(name, {})
    return found


def error_reason(message: Message) -> str:
    """Return why a client failed, in one line of printable text."""
    return one_line(_last_words(message)[:LONGEST_REASON])


def _last_words(message: Message) -> str:
    """Return what the client's error said; Ray wraps it in two tracebacks, a SuperNode in the error's type."""
    reason = message.error.reason or ""
    said = re.findall(r"ClientAppException occurred\. Message: (.*)", reason)
    raised = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>", reason.strip(), re.DOTALL)
    if raised and not said:  # as a SuperNode says it
        kind, words = raised.groups()
        return f"{kind}: {(words.strip().splitlines() or ['no reason'])[-1]}"
    lines = said or reason.strip().splitlines() or [f"error code {message.error.code}"]
    return str(lines[-1]).rstrip("'>")


def message_bytes(message: Message) -> int:
    """Return the payload of a message in bytes, over all its records (0 for an error)."""
    return sum(map(_record_bytes, message.content.values())) if message.has_content() else 0


def _record_bytes(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    try:
        return record.count_bytes()
    except (ValueError, IndexError):  # Flower counts neither an empty text nor an empty list, which anybody may send
        return sum(len(str(value)) for value in record.values())
