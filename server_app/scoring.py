"""How good the universal models are: on the server's test set, or where there is none, as the clients say."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from disue.data import Examples
from disue.metrics import Score, score
from disue.models import Classifier, State
from disue.wire import EvaluateReply
from strategies.base import FederatedStrategy


@dataclass(frozen=True)
class Scores:
    """Of the universal model and of the plain average, both of the run's own architecture; None: not known.

    ``others``: of the universal models of other architectures.
    """

    universal: Score | None
    average: Score | None
    others: Mapping[str, Score] = field(default_factory=dict)


def on_test_set(
    strategy: FederatedStrategy, build: Callable[[str], Classifier], main: str, test: Examples, device: torch.device
) -> Scores:
    """Return the scores on a test set of the server.

    Parameters
    ----------
    strategy : FederatedStrategy
    build : callable
        From the name of an architecture to a model.
    main : str
        The run's own architecture.
    test : Examples
    device : torch.device
    """

    def evaluate(state: State, name: str) -> Score:
        model = build(name)
        model.load_state_dict(state)
        return score(model, test, device)

    universal = evaluate(strategy.universal, main)
    average = universal if strategy.average is strategy.universal else evaluate(strategy.average, main)
    others = {name: evaluate(state, name) for name, state in strategy.universals.items() if name != strategy.model}
    return Scores(universal, average, others)


def by_clients(evaluations: Mapping[str, EvaluateReply], models: Mapping[str, str], main: str) -> Scores:
    """Return the mean over the clients' own test examples, of the clients that were evaluated.

    Parameters
    ----------
    evaluations : mapping of client to EvaluateReply
    models : mapping of client to str
        Their architectures; each client evaluated the universal model of its own.
    main : str
        The run's own architecture.
    """
    replies: dict[str, list[EvaluateReply]] = {}
    for name, reply in evaluations.items():
        replies.setdefault(models[name], []).append(reply)
    means = {model: _mean(own) for model, own in sorted(replies.items())}
    universal = means.pop(main, None)
    return Scores(universal, None, means)


def _mean(replies: list[EvaluateReply]) -> Score:
    total = sum(reply.num_examples for reply in replies)
    losses = [math.nan if reply.universal_loss is None else reply.universal_loss for reply in replies]
    return Score(
        sum(reply.universal_accuracy * reply.num_examples for reply in replies) / total,
        sum(loss * reply.num_examples for loss, reply in zip(losses, replies, strict=True)) / total,
    )
