"""Bounds by the others: a number that a client says counts up to some times the median of the other clients'."""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from logging import WARNING

import torch
from flwr.common.logger import log
from pydantic import Field
from torch import Tensor

from disue.config import Multiple, Settings
from disue.covariance import from_triangle, triangle
from disue.discriminant import positive
from disue.privacy.dp import FITS_UP_TO
from disue.signature import Signature

USUAL_LOSS = 1.0
"""Nats. A loss that is only reported counts at least up to `max-weight` times so much."""

BY_OTHERS = "bounded by the other clients'"
BY_GUESSING = "twice that of guessing"

SMALLEST_GAP = 1e-9
"""Nats. A difference of two losses counts at least up to `max-fit` times so much."""


class CapSettings(Settings):
    """Bounds by the other clients."""

    max_weight: Multiple = Field(
        10.0,
        ge=0.0,
        le=10**9,
        description="cap on a client's example counts, on losses that are reported as means, and on lengths of "
        "gradients in scaffold, as a multiple of the median of the other clients'; 0: no cap",
    )
    max_fit: Multiple = Field(
        2.0,
        ge=0.0,
        le=10**9,
        description="cap on a client's losses from which the blend of its cluster is learnt, as a multiple of the "
        "median of the cluster's other clients, on how far apart its losses on student and average lie, and on the "
        "size of what it tells of its features; 0: no cap but twice the loss of guessing",
    )


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
        A number of examples, or the length of a gradient, counts up to so many times the median of the others'; 0: as
        it is.
    max_fit : float (default: 2.0)
        A loss on training data counts up to so many times the median of the others'; 0: the others bound none.
    """

    def __init__(self, max_weight: float = 0.0, max_fit: float = 2.0) -> None:
        self.max_weight = max_weight
        self.max_fit = max_fit
        self._told: set[tuple[str, str]] = set()

    def examples(self, claimed: Mapping[str, float], what: str = "num-examples") -> dict[str, float]:
        """Return how many examples each client counts for."""
        return self._logged(what, claimed, capped(claimed, self.max_weight))

    def losses(self, said: Mapping[str, float], what: str) -> dict[str, float]:
        """Return the losses as they count in a reported mean: up to `USUAL_LOSS` they are measured by that."""
        return self._logged(what, said, capped(said, self.max_weight, usual=USUAL_LOSS))

    def gradients(self, lengths: Mapping[str, float]) -> dict[str, float]:
        """Return how long each client's gradient may be."""
        return self._logged("a gradient's length", lengths, capped(lengths, self.max_weight))

    def fits(self, said: Mapping[str, float], guessing: float, what: str) -> dict[str, float]:
        """Return losses of a cluster's clients, each up to `max_fit` times the median of the others'.

        A loss up to half of that of ``guessing`` (nats) counts as it is, and none counts for more than twice that.
        """
        most = {name: min(loss, FITS_UP_TO * guessing) for name, loss in said.items()}
        counted = capped(most, self.max_fit, guessing / (2.0 * self.max_fit) if self.max_fit else 0.0)
        self._logged(what, {name: loss for name, loss in said.items() if counted[name] < most[name]}, counted)
        return self._logged(what, said, counted, BY_GUESSING)

    def plausible(self, said: Mapping[str, float], guessing: float, what: str) -> dict[str, float]:
        """Return losses, none of which counts for more than twice that of ``guessing`` (nats)."""
        counted = {name: min(loss, FITS_UP_TO * guessing) for name, loss in said.items()}
        return self._logged(what, said, counted, BY_GUESSING)

    def gaps(self, said: Mapping[str, float]) -> dict[str, float]:
        """Return how much better one model fits than another, each up to `max_fit` times the median of the others'.

        Nothing is logged: of honest clients one or the other often differs more than that.

        So with twice the median, as it is by default, one client does not overrule three or more others that agree.
        """
        sizes = {name: abs(gap) for name, gap in said.items()}
        counted = capped(sizes, self.max_fit, usual=SMALLEST_GAP)
        return {name: math.copysign(size, said[name]) for name, size in counted.items()}

    def variances(self, traces: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
        """Return traces of these clients' covariances, each up to `max_fit` times the median of all others'."""
        counted = capped(traces, self.max_fit)
        said = {name: traces[name] for name in names}
        return self._logged("covariance", said, {name: counted[name] for name in names})

    def features(self, told: Mapping[str, Signature]) -> dict[str, Signature]:
        """Return signatures that tell of features no larger than up to `max_fit` times the median of the others'.

        What a client tells is not checked by itself: its prototypes may be far from all else, and its matrix have
        negative variances, or such large ones that all samples are alike. Bounded are the length of each prototype, by
        the longest of each other client, and the trace of the covariance. Where there is a matrix for each stratum, or
        axes of it, all are scaled alike, by the mean of their traces over the examples; and then each has a trace
        bounded by the largest of each other client. Few clients have a stratum in common, so that strata are not told
        apart.
        """
        lengths = {name: own.prototypes.double().norm(dim=1) for name, own in told.items()}
        shrink = self._largest("prototypes", lengths)
        near = {
            name: replace(own, prototypes=(own.prototypes.double() * shrink[name].unsqueeze(1)).float())
            if bool((shrink[name] < 1.0).any())
            else own
            for name, own in told.items()
        }
        known = {name: _as_one(own.covariance) for name, own in told.items() if own.covariance is not None}
        traces = {name: _traces(own) for name, own in known.items()}
        means = {name: _mean(told[name].label_counts, own) for name, own in traces.items()}
        counted = self.variances(means, means)
        alike = {name: counted[name] / max(mean, 1e-300) for name, mean in means.items()}
        each = self._largest(
            "a stratum's covariance",
            {name: own * alike[name] * (told[name].label_counts > 0) for name, own in traces.items() if own.ndim == 1},
        )
        for name, own in known.items():
            scale = alike[name] * each[name] if name in each else torch.tensor(alike[name])
            if own.ndim == 3:
                scale = scale.sqrt()
            scaled = own * scale.float().view(-1, *(1,) * (own.ndim - 1))
            near[name] = replace(near[name], covariance=scaled.view_as(own))
        return near

    def _largest(self, what: str, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by how much each of a client's sizes, (strata,), counts for less: the largest bounds the others'."""
        most = {name: float(own.max()) for name, own in sizes.items()}
        counted = self._logged(what, most, capped(most, self.max_fit))
        return {name: (counted[name] / own.clamp(min=1e-300)).clamp(max=1.0) for name, own in sizes.items()}

    def _logged(
        self, what: str, said: Mapping[str, float], counted: dict[str, float], why: str = BY_OTHERS
    ) -> dict[str, float]:
        for name, number in said.items():
            if counted[name] < number * (1.0 - 1e-9) and (what, name) not in self._told:
                self._told.add((what, name))
                log(WARNING, "%s says %s of %.6g; it counts as %.6g, %s", name, what, number, counted[name], why)
        return counted


def _as_one(covariance: Tensor) -> Tensor:
    """Return triangles without negative variances; axes have none."""
    return covariance if covariance.ndim == 3 else triangle(positive(from_triangle(covariance)))


def _traces(covariance: Tensor) -> Tensor:
    """Return the trace of a client's covariance, (), or of that of each stratum, (strata,), float64."""
    if covariance.ndim == 3:
        return covariance.double().square().sum(dim=(1, 2))
    return from_triangle(covariance.double()).diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _mean(label_counts: Tensor, traces: Tensor) -> float:
    """Return the mean of traces over a client's examples."""
    counts = label_counts.double()
    return float(traces if traces.ndim == 0 else counts @ traces / counts.sum())
