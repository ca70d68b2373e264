"""The guard's other evidence, for proxy sets of other data than the task's: what clients say of both models."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log

from disue.errors import WireError
from disue.fields import wire_name
from disue.models import State
from disue.objective import LocalObjective
from disue.tasks import ImageClassification
from disue.wire import CompareReply, CompareRequest, Records, error_reason
from strategies.aggregation.caps import Caps
from strategies.rounds.registry import Client

Ask = Callable[[list[Message]], Iterable[Message]]


def fitted_better_by_average(
    ask: Ask,
    clients: Sequence[Client],
    server_round: int,
    taught: Mapping[str, State],
    averages: Mapping[str, State],
    objective: LocalObjective,
    task: ImageClassification | None,
    caps: Caps,
    loss_unit: float,
) -> set[str]:
    """Return the architectures whose average has the lower loss on its clients' training data, summed over them.

    Each client's label prior is put into the logits of both. A loss counts up to twice that of guessing, and the
    difference of a client's two losses up to `Caps.max_fit` times the median of the others' differences: one client
    cannot overrule others that agree. Clients that do not answer count for nothing; of an architecture of which none
    does the average is not better.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked, each of the models of its own architecture.
    server_round : int
    taught, averages : mapping of architecture to State
    objective : LocalObjective
    task : ImageClassification or None
        What clients with own data are told.
    caps : Caps
        Bounds the losses, and logs once whose counts for less than it says.
    loss_unit : float
        The loss of guessing (`Task.loss_unit`).
    """
    asked = {client.node_id: client for client in clients if client.model in taught}
    record = Records()
    messages = [
        CompareRequest(taught[client.model], averages[client.model], server_round, objective, task).to_message(
            client.node_id, record
        )
        for client in asked.values()
    ]
    fits: dict[str, dict[str, CompareReply]] = {model: {} for model in taught}
    for reply in ask(messages) if messages else ():
        client = asked[reply.metadata.src_node_id]
        try:
            if reply.has_error():
                raise WireError(error_reason(reply))
            fits[client.model][client.name] = CompareReply.from_message(reply)
        except WireError as error:
            log(WARNING, "%s could not compare the student with the average: %s", client.name, error)

    def gap(model: str) -> float:
        student, average = (
            caps.plausible(
                {name: getattr(told, what) for name, told in fits[model].items()}, loss_unit, wire_name(what)
            )
            for what in ("student_fit", "average_fit")
        )
        gaps = {name: student[name] - average[name] for name in student}
        return math.fsum(caps.gaps(gaps, "student-fit less average-fit").values())

    return {model for model in taught if gap(model) > 0.0}
