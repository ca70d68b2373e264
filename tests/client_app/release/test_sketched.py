"""With privacy=secure accuracies do not tell how many examples a client has: the attack that reads them off, tried."""

from collections.abc import Callable
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import pytest
from tests_support import RecordingGrid, numbered_classes

from client_app.app import app as client_app
from client_app.release import sketched
from client_app.release.gaussian import seeded
from client_app.release.sketched import STEPS_OF_ACCURACY, SketchedRelease, round_accuracy
from disue.data import build_federation
from disue.wire import CompareReply, EvaluateReply
from disue_cli.engines.inline import simulated_nodes
from server_app.config import RunConfig
from server_app.run import execute

CLIENTS, LARGEST = 6, 500
TASK = numbered_classes(10)
ACCURACIES = ("universal-accuracy", "expert-accuracy", "personal-accuracy")
SIZES = range(STEPS_OF_ACCURACY[0], LARGEST)


def examples_read_off(accuracies: list[float]) -> int:
    """Return the fewest examples of which all these can be exact shares: the attack, over all rounds of a client."""
    fractions = [Fraction(value).limit_denominator(LARGEST) for value in accuracies]
    return lcm(*(fraction.denominator for fraction in fractions))


def attacked(directory: Path) -> tuple[list[int], list[int]]:
    """Return how many test examples the clients of a run have, and how many the server reads off their accuracies."""
    config = RunConfig.from_flower(
        {
            "privacy": "secure",
            "method": "fedavg",
            "model": "mlp",
            "num-server-rounds": 5,
            "local-epochs": 1,
            "scenario": "dirichlet",
            "alpha": 1.0,
            "test-examples": 60,
            "report": False,
            "output-dir": str(directory),
        }
    )
    grid = RecordingGrid(client_app, config.to_flower(), simulated_nodes(CLIENTS))
    execute(config, grid)
    seen: dict[int, list[float]] = {}
    for message in grid.received:
        if message.metadata.message_type == "evaluate":
            metrics = message.content.metric_records["metrics"]
            told = [float(metrics[key]) for key in ACCURACIES if key in metrics]  # type: ignore[arg-type]
            seen.setdefault(message.metadata.src_node_id, []).extend(told)
    federation = build_federation(config, CLIENTS)
    sizes = [len(federation.client(i).test) for i in range(CLIENTS)]
    return sizes, [examples_read_off(seen[node]) for node in sorted(seen)]


def test_exact_accuracies_tell_the_number_of_test_examples_and_rounded_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, found = attacked(tmp_path / "rounded")
    assert len(set(sizes)) > 3
    assert all(STEPS_OF_ACCURACY[0] % number == 0 for number in found)  # of the steps, and of nothing else
    assert not any(size == number for size, number in zip(sizes, found, strict=True))
    monkeypatch.setattr(sketched, "round_accuracy", lambda share, examples: share)
    sizes, found = attacked(tmp_path / "exact")
    for size, number in zip(sizes, found, strict=True):
        assert number > 1
        assert size % number == 0
        assert size // number <= 2


def steps_of(examples: int) -> set[float]:
    return {round_accuracy(right / examples, examples) for right in range(examples + 1)}


@pytest.mark.parametrize("fewest", STEPS_OF_ACCURACY)
def test_which_rounded_values_occur_is_the_same_for_all_numbers_of_a_class(fewest: int) -> None:
    """So that seeing every value that there is, over any number of rounds, leaves all of these numbers possible."""
    larger = [steps for steps in STEPS_OF_ACCURACY if steps > fewest]
    most = min(larger, default=LARGEST)
    grid = {step / fewest for step in range(fewest + 1)}
    assert all(steps_of(examples) == grid for examples in range(fewest, most))


def test_a_rounded_accuracy_is_off_by_half_a_step_at_most() -> None:
    for examples in SIZES:
        for right in range(examples + 1):
            assert (
                abs(round_accuracy(right / examples, examples) - right / examples) <= 0.5 / STEPS_OF_ACCURACY[0] + 1e-12
            )


def told(rule: Callable[[SketchedRelease], Any]) -> Any:
    return rule(SketchedRelease(RunConfig(privacy="secure"), seeded(0), "a", 1, None))


def test_every_exact_number_of_a_reply_is_rounded() -> None:
    exact = EvaluateReply(31, 7 / 31, 1.23456, 11 / 31, 13 / 31, 17, 0.98765, 0.45678)
    assert told(lambda rule: rule.evaluation(exact, TASK)) == EvaluateReply(1, 0.25, 1.23, 0.35, 0.4, 0, 0.99, 0.46)
    few = EvaluateReply(3, 1 / 3, 1.0, 2 / 3)
    assert told(lambda rule: rule.evaluation(few, TASK)) == EvaluateReply(1, 0.5, 1.0, 0.5)
    assert told(lambda rule: rule.comparison(CompareReply((0.12345, 1e3)))) == CompareReply((0.12, 1e3))
