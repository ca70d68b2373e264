"""The guard's other evidence, for proxy sets of other data than the task's: what clients say of both models."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log

from disue.errors import WireError
from disue.models import State
from disue.objective import LocalObjective
from disue.privacy import FITS_UP_TO
from disue.task import Task
from disue.wire import CompareReply, CompareRequest, Records, error_reason
from strategies.caps import capped
from strategies.roster import Client

GAP_LIMIT = 2.0
"""How much better one model fits than the other counts, at one client, up to so many times the others' median."""

Ask = Callable[[list[Message]], Iterable[Message]]


def fitted_better_by_average(
    ask: Ask,
    clients: Sequence[Client],
    server_round: int,
    taught: Mapping[str, State],
    averages: Mapping[str, State],
    objective: LocalObjective,
    task: Task | None,
) -> set[str]:
    """Return the architectures whose average has the lower loss on its clients' training data, summed over them.

    Each client's label prior is put into the logits of both. A loss counts up to twice that of guessing, and the
    difference of a client's two losses up to `GAP_LIMIT` times the median of the others' differences: one client cannot
    overrule others that agree. Clients that do not answer count for nothing; of an architecture of which none does the
    average is not better.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked, each of the models of its own architecture.
    server_round : int
    taught, averages : mapping of architecture to State
    objective : LocalObjective
    task : Task or None
    """
    asked = {client.node_id: client for client in clients if client.model in taught}
    record = Records()
    messages = [
        CompareRequest(taught[client.model], averages[client.model], server_round, objective, task).to_message(
            client.node_id, record
        )
        for client in asked.values()
    ]
    gaps: dict[str, dict[str, float]] = {model: {} for model in taught}
    for reply in ask(messages) if messages else ():
        client = asked[reply.metadata.src_node_id]
        try:
            if reply.has_error():
                raise WireError(error_reason(reply))
            told = CompareReply.from_message(reply)
        except WireError as error:
            log(WARNING, "%s could not compare the student with the average: %s", client.name, error)
            continue
        most = FITS_UP_TO * math.log(len(taught[client.model]["head.bias"]))
        gaps[client.model][client.name] = min(told.student_fit, most) - min(told.average_fit, most)
    return {model for model, own in gaps.items() if _sum_of(own) > 0.0}


def _sum_of(gaps: Mapping[str, float]) -> float:
    """Return the sum, each as far as it counts beside the others."""
    sizes = capped({name: abs(gap) for name, gap in gaps.items()}, GAP_LIMIT)
    return math.fsum(math.copysign(size, gaps[name]) for name, size in sizes.items())
