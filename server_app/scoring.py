"""How good the universal models are: on the server's test set, or where there is none, as the clients say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from disue.data import Examples
from disue.metrics import Evaluation, evaluate
from disue.models import Classifier, State, fill, same_model
from disue.tasks import Task
from disue.wire import EvaluateReply
from strategies.aggregation.caps import Caps


@dataclass(frozen=True)
class Scores:
    """Of the universal model and of the plain average, both of the run's own architecture; None: not known.

    ``others``: of the universal models of other architectures.
    """

    universal: Evaluation | None
    average: Evaluation | None
    others: Mapping[str, Evaluation] = field(default_factory=dict)


def on_test_set(
    task: Task,
    universals: Mapping[str, State],
    average: State,
    build: Callable[[str], Classifier],
    main: str,
    test: Examples,
    device: torch.device,
) -> Scores:
    """Return the scores on a test set of the server.

    Parameters
    ----------
    task : Task
    universals : mapping of architecture to State
    average : State
        Of the run's own architecture.
    build : callable
        From the name of an architecture to a model.
    main : str
        The run's own architecture.
    test : Examples
    device : torch.device
    """

    def score(state: State, name: str) -> Evaluation:
        model = build(name)
        fill(model, state)
        return evaluate(task, model, test, device)

    universal = score(universals[main], main)
    of_average = universal if same_model(average, universals[main]) else score(average, main)
    others = {name: score(state, name) for name, state in universals.items() if name != main}
    return Scores(universal, of_average, others)


def by_clients(
    evaluations: Mapping[str, EvaluateReply], models: Mapping[str, str], main: str, caps: Caps, alike: bool = False
) -> Scores:
    """Return the mean over the clients' own test examples, of the clients that were evaluated.

    Parameters
    ----------
    evaluations : mapping of client to EvaluateReply
    models : mapping of client to str
        Their architectures; each client evaluated the universal model of its own.
    main : str
        The run's own architecture.
    caps : Caps
        Bounds each client's examples and loss.
    alike : bool (default: False)
        Every client counts once, whatever it says of its examples.
    """
    claimed = {name: 1.0 if alike else float(reply.num_examples) for name, reply in evaluations.items()}
    examples = caps.examples(claimed, "num-examples to test on")
    told = {name: reply.universal_loss for name, reply in evaluations.items() if reply.universal_loss is not None}
    losses = caps.losses(told, "universal-loss")
    teams: dict[str, list[str]] = {}
    for name in evaluations:
        teams.setdefault(models[name], []).append(name)
    means = {
        model: Evaluation(
            _mean([(examples[name], losses[name]) for name in names if name in losses]),
            {"accuracy": _mean([(examples[name], evaluations[name].universal_accuracy) for name in names])},
        )
        for model, names in sorted(teams.items())
    }
    universal = means.pop(main, None)
    return Scores(universal, None, means)


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """Return a weighted mean; that of nothing is not a number."""
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else math.nan
