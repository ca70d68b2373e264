"""What a method may know and do in a round, beside the clients' contributions."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from disue.models import State
from disue.signature import Signature
from strategies.aggregation.caps import Caps


def _nobody_asked(
    students: Mapping[str, State], averages: Mapping[str, State], caps: Caps, loss_unit: float
) -> Mapping[str, float]:
    return {}


def _nobody_told(models: Mapping[str, State], num_strata: int, share: float) -> Mapping[str, Signature]:
    return {}


def _nobody_early(names: Collection[str], shape: tuple[int, int], covariance: bool) -> Mapping[str, Signature]:
    return {}


@dataclass(frozen=True)
class Round:
    """A round, as its method sees it.

    Attributes
    ----------
    number : int
        From 1.
    models : mapping of client to str
        The architecture of every client that takes or took part.
    clusters_before : mapping of client to cluster
        Those of the round before.
    groups : mapping of client to int
        The planted groups of the clients that are there; -1: it is in none.
    descriptions : mapping of client to Tensor
        What clients said of their data, where the method asks for it.
    changed : frozenset of client
        Those that described other data than in the round before: what they told before is of data that they had.
    timed : callable
        ``with round.timed(phase):`` adds the seconds spent inside to a phase: clustering, distillation or evaluation.
    best_shares : callable
        Asks clients how well mixtures of the first models and the second fit their data, both by architecture, and
        bounds what they say by `Caps` and the task's ``loss_unit``. Returns the best share of the first, by
        architecture, where anybody answers.
    features : callable
        Asks a share of the clients what their features are like under the given models, by architecture. Returns, for
        each client that answers, the counts, means and covariances of so many strata.
    early : callable
        Asks the named clients what their early features are like, of which there are so many, (strata, features), and,
        if that is wished, how they vary. Returns it for each client that answers.
    """

    number: int
    models: Mapping[str, str]
    clusters_before: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    descriptions: Mapping[str, Tensor] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    timed: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext()
    best_shares: Callable[[Mapping[str, State], Mapping[str, State], Caps, float], Mapping[str, float]] = _nobody_asked
    features: Callable[[Mapping[str, State], int, float], Mapping[str, Signature]] = _nobody_told
    early: Callable[[Collection[str], tuple[int, int], bool], Mapping[str, Signature]] = _nobody_early
