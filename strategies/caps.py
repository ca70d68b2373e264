"""Bounds by the others: a number that a client says counts up to some times the median of the other clients'."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from logging import WARNING

from flwr.common.logger import log

from disue.privacy import FITS_UP_TO

USUAL_LOSS = 1.0
"""Nats. A loss that is only reported counts at least up to `max-weight` times so much."""
FIT_LIMIT = 2.0
"""A loss on training data counts up to so many times the median of the others'."""


def capped(values: Mapping[str, float], times: float, usual: float = 0.0) -> dict[str, float]:
    """Return numbers of clients, none of them above so many times the median of the others'; 0 times: as they are.

    Where that median is below ``usual``, this counts in its place. A number that stands alone is as it is.

    Examples
    --------
    >>> capped({"a": 100, "b": 120, "c": 10**7}, 10.0)
    {'a': 100, 'b': 120, 'c': 1100.0}
    """
    if not times or len(values) < 2:
        return dict(values)
    ordered = sorted(values.values())
    most = {value: times * max(_median_without(ordered, bisect_left(ordered, value)), usual) for value in set(ordered)}
    return {name: min(value, most[value] or value) for name, value in values.items()}


def _median_without(ordered: Sequence[float], left_out: int) -> float:
    """Return the median of all but one of at least two ordered numbers."""
    middle = (len(ordered) - 1) / 2 - 0.5  # of the others, between these two
    low, high = math.floor(middle), math.ceil(middle)
    return (ordered[low + (low >= left_out)] + ordered[high + (high >= left_out)]) / 2


class Caps:
    """Caps numbers of clients, and logs once whose number counts for less than it says.

    Parameters
    ----------
    max_weight : float (default: 0.0)
        A number of examples counts up to so many times the median of the others'; 0: as it is.
    """

    def __init__(self, max_weight: float = 0.0) -> None:
        self.max_weight = max_weight
        self._told: set[tuple[str, str]] = set()

    def examples(self, claimed: Mapping[str, float], what: str = "num-examples") -> dict[str, float]:
        """Return how many examples each client counts for."""
        return self._logged(what, claimed, capped(claimed, self.max_weight))

    def losses(self, said: Mapping[str, float], what: str) -> dict[str, float]:
        """Return the losses as they count in a reported mean: up to `USUAL_LOSS` they are measured by that."""
        return self._logged(what, said, capped(said, self.max_weight, usual=USUAL_LOSS))

    def fits(self, said: Mapping[str, float], guessing: float, what: str) -> dict[str, float]:
        """Return losses of a cluster's clients, each up to twice the median of the others': one alone moves little.

        A loss up to half of that of ``guessing`` (nats) counts as it is, and none counts for more than twice that.
        """
        most = {name: min(loss, FITS_UP_TO * guessing) for name, loss in said.items()}
        return self._logged(what, said, capped(most, FIT_LIMIT, usual=guessing / (2.0 * FIT_LIMIT)))

    def _logged(self, what: str, said: Mapping[str, float], counted: dict[str, float]) -> dict[str, float]:
        for name, number in said.items():
            if counted[name] < number and (what, name) not in self._told:
                self._told.add((what, name))
                line = "%s says %s of %.6g; it counts as %.6g, bounded by the other clients'"
                log(WARNING, line, name, what, number, counted[name])
        return counted
