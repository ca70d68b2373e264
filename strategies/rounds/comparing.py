"""How much of what was taught is of use: what clients say of mixtures of student and average."""

import math
from collections.abc import Mapping, Sequence

from disue.models import State
from disue.objective import LocalObjective
from disue.tasks import ImageClassification
from disue.wire import CompareReply, CompareRequest, Records
from disue.wire.compare import SHARES
from strategies.aggregation.caps import Caps
from strategies.rounds.asking import Ask, answers_of
from strategies.rounds.registry import Client

FEWEST_ASKED = 5
LEAST_ASKED = 0.1
"""Share of all clients that are asked, if these are more than the fewest: two models are sent to each."""


def num_asked(clients: int) -> int:
    """Return how many of so many clients are asked."""
    return min(clients, max(FEWEST_ASKED, math.ceil(LEAST_ASKED * clients)))


def best_shares(
    ask: Ask,
    clients: Sequence[Client],
    server_round: int,
    students: Mapping[str, State],
    averages: Mapping[str, State],
    objective: LocalObjective,
    task: ImageClassification | None,
    caps: Caps,
    loss_unit: float,
) -> dict[str, float]:
    """Return, for each architecture, the share of the student with the lowest loss on clients' training data.

    Each client's label prior is put into the logits of all. A loss counts up to twice that of guessing, and its
    difference from the average's up to `Caps.max_fit` times the median of the others' differences: with twice, as it is
    by default, one client cannot overrule three others that agree. Clients that do not answer count for nothing; an
    architecture of which none does is left out.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked, each of the models of its own architecture.
    server_round : int
    students, averages : mapping of architecture to State
    objective : LocalObjective
    task : ImageClassification or None
        What clients with own data are told.
    caps : Caps
        Bounds the losses, and logs once whose counts for less than it says.
    loss_unit : float
        The loss of guessing (`Task.loss_unit`).
    """
    record = Records()
    found = answers_of(
        ask,
        [client for client in clients if client.model in students],
        lambda client: CompareRequest(
            students[client.model], averages[client.model], server_round, objective, task
        ).to_message(client.node_id, record),
        lambda reply, client: (client.model, CompareReply.from_message(reply)),
        "could not compare the student with the average",
    )
    fits: dict[str, dict[str, CompareReply]] = {model: {} for model in students}
    for name, (model, reply) in found.items():
        fits[model][name] = reply
    return {model: _best(told, caps, loss_unit) for model, told in fits.items() if told}


def _best(told: Mapping[str, CompareReply], caps: Caps, loss_unit: float) -> float:
    """Return the first share at which the bounded losses, less those of the average, have the lowest sum."""
    average = caps.plausible({name: reply.fits[0] for name, reply in told.items()}, loss_unit, "fits")
    sums = [0.0]
    for i in range(1, len(SHARES)):
        mixture = caps.plausible({name: reply.fits[i] for name, reply in told.items()}, loss_unit, "fits")
        gaps = {name: mixture[name] - average[name] for name in told}
        sums.append(math.fsum(caps.gaps(gaps).values()))
    return SHARES[min(range(len(SHARES)), key=sums.__getitem__)]
