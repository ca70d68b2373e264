"""What an update may be: how many examples it may stand for, and how far from its start it may lie."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from disue.models import State
from strategies.robust import flat
from strategies.updates import ClientUpdate


@dataclass(frozen=True)
class Limits:
    """Bounds for the updates of one round.

    The length of an update is the Euclidean norm of what it changes in the model that it started from.

    Parameters
    ----------
    max_examples : int (default: 10 million)
        An update that claims to stand for more is rejected.
    max_norm : float (default: 0.0)
        An update is rejected that is longer than so many times the median of the round, and than so many times the
        model that it started from; 0: none is. The median alone is no measure: where most clients have little left
        to learn, one with much more data is a thousand times as long.
    clip_norm : float (default: 0.0)
        An update longer than so many times the median is shortened to that; 0: none is.
    """

    max_examples: int = 10**7
    max_norm: float = 0.0
    clip_norm: float = 0.0

    def implausible(self, updates: Sequence[ClientUpdate]) -> dict[str, str]:
        """Return the clients whose updates are too long, and the reason."""
        if not self.max_norm or not updates:
            return {}
        lengths = _lengths(updates)
        usual = statistics.median(lengths)
        found: dict[str, str] = {}
        for update, length in zip(updates, lengths, strict=True):
            scale = max(usual, float(flat(update.start).norm()))
            if length > self.max_norm * scale > 0.0:
                found[update.name] = f"its norm is {length:.3g}; {self.max_norm:g} times {scale:.3g} is allowed"
        return found

    def clipped(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return updates none of which is longer than ``clip_norm`` times the median."""
        if not self.clip_norm or not updates:
            return list(updates)
        lengths = _lengths(updates)
        limit = self.clip_norm * statistics.median(lengths)
        return [
            update if length <= limit else replace(update, state=_shortened(update, limit / length))
            for update, length in zip(updates, lengths, strict=True)
        ]


def _lengths(updates: Sequence[ClientUpdate]) -> list[float]:
    return [float((flat(update.state) - flat(update.start)).norm()) for update in updates]


def _shortened(update: ClientUpdate, share: float) -> State:
    return {
        name: (start.double() + share * (update.state[name].double() - start.double())).to(start.dtype)
        for name, start in update.start.items()
    }
