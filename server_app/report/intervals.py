"""How sure an accuracy is, from how much it was measured on."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import binomtest, t

from disue.data import OWN
from server_app.report.reading import ClientRow, RunRecord

Interval = tuple[float, float]
CONFIDENCE = 0.95
MOST_EXAMPLES = 10**9
UNIVERSAL = "universal_accuracy"
"""Of the run's own architecture; of another one its name follows, after an underscore."""


def of_examples(accuracy: float | None, examples: int) -> Interval | None:
    """Return Wilson's 95 % interval of an accuracy on so many examples; None where it is not known.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Examples
    --------
    >>> [round(end, 3) for end in of_examples(0.9, 100)]
    [0.826, 0.945]
    """
    if accuracy is None or not 0 <= accuracy <= 1 or not 0 < examples <= MOST_EXAMPLES:
        return None
    interval = binomtest(round(accuracy * examples), examples).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def over_clients(accuracies: Sequence[float | None]) -> Interval | None:
    """Return Student's 95 % interval of a mean over clients, taken as a sample of clients; None for less than two.

    Examples
    --------
    >>> [round(end, 3) for end in over_clients([0.8, 0.9, 1.0])]
    [0.652, 1.0]
    """
    known = [value for value in accuracies if value is not None]
    if len(known) < 2:
        return None
    mean, spread = statistics.mean(known), statistics.stdev(known) / math.sqrt(len(known))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(known) - 1)) * spread
    return max(0.0, mean - half), min(1.0, mean + half)


def of_metric(record: RunRecord, key: str, value: float | None) -> Interval | None:
    """Return the interval of an accuracy of a run, or of a baseline of it; None where it is not known.

    That of what the server tested is Wilson's; that of a mean over clients is Student's over this run's.

    Parameters
    ----------
    record : RunRecord
    key : str
        The metric.
    value : float or None
        What was measured of it.
    """
    if is_over_clients(record, key):
        if value != next((row[key] for row in reversed(record.rows) if row.get(key) is not None), None):
            return None  # a baseline's: its clients are not in these files
        return over_clients([_of_client(record, client, key) for client in record.clients])
    on_test_set = key == "average_accuracy" or key.startswith(UNIVERSAL)
    return of_examples(value, examples_tested(record)) if on_test_set else None


def is_over_clients(record: RunRecord, key: str) -> bool:
    """Return whether the interval of an accuracy is one over clients."""
    return key == "expert_accuracy" or (key.startswith(UNIVERSAL) and record.config.get("dataset") == OWN)


def _of_client(record: RunRecord, client: ClientRow, key: str) -> float | None:
    if key == "expert_accuracy":
        return client.expert
    model = key.removeprefix(UNIVERSAL).removeprefix("_") or record.config.get("model")
    return client.universal if client.model == model else None


def examples_tested(record: RunRecord) -> int:
    """Return how many test examples the server has; 0 where it has none or the run is not over."""
    counts = record.arrays.get("confusion")
    return 0 if counts is None or not counts.size else max(0, int(counts.sum()))


def in_words(interval: Interval | None) -> str:
    """Return an interval as percentages; nothing for none.

    Examples
    --------
    >>> in_words((0.8256, 0.9448))
    '82.6 to 94.5 %'
    """
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def overlap(first: Interval | None, second: Interval | None) -> bool:
    """Return whether two intervals are known and have values in common."""
    return first is not None and second is not None and first[0] <= second[1] and second[0] <= first[1]
