"""What clients' features are like under a model: how many examples, which mean and which covariance, class by class."""

from collections.abc import Mapping, Sequence

from disue.models import State
from disue.signature import Signature
from disue.tasks import ImageClassification
from disue.wire import EarlyReply, EarlyRequest, FeaturesReply, FeaturesRequest, Records
from strategies.rounds.asking import Ask, answers_of
from strategies.rounds.registry import Client


def told_features(
    ask: Ask,
    clients: Sequence[Client],
    server_round: int,
    models: Mapping[str, State],
    num_strata: int,
    task: ImageClassification | None,
) -> dict[str, Signature]:
    """Return what clients say of their features, by client, sorted by name.

    A client that does not answer, or not as it must, is left out, and the log says so.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked, each under the model of its own architecture.
    server_round : int
    models : mapping of architecture to State
    num_strata : int
        Of which there are a count, a mean and a covariance each.
    task : ImageClassification or None
        What clients with own data are told.
    """
    record = Records()
    return answers_of(
        ask,
        [client for client in clients if client.model in models],
        lambda client: FeaturesRequest(models[client.model], server_round, task).to_message(client.node_id, record),
        lambda reply, client: FeaturesReply.from_message(reply, num_strata, models[client.model]).signature,
        "told nothing of its features",
    )


def told_early(
    ask: Ask,
    clients: Sequence[Client],
    server_round: int,
    shape: tuple[int, int],
    covariance: bool,
    task: ImageClassification | None,
) -> dict[str, Signature]:
    """Return what clients say of early features, by client, sorted by name.

    A client that does not answer, or not as it must, is left out, and the log says so.

    Parameters
    ----------
    ask : callable
        Sends messages and returns the answers.
    clients : sequence of Client
        Who is asked.
    server_round : int
    shape : (int, int)
        Of the means, (strata, features).
    covariance : bool
        Whether they say how the features vary, too.
    task : ImageClassification or None
        What clients with own data are told.
    """
    return answers_of(
        ask,
        clients,
        lambda client: EarlyRequest(shape[1], covariance, server_round, task).to_message(client.node_id),
        lambda reply, client: EarlyReply.from_message(reply, shape, covariance).signature,
        "told nothing of its early features",
    )
