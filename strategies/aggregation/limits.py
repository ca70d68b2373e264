"""What an update may be and weigh: how many examples it may stand for, and how far from its start it may lie."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field
from torch import Tensor

from disue.config import Multiple, Settings
from disue.models import State
from strategies.aggregation.caps import Caps
from strategies.aggregation.robust import flat
from strategies.teams import members_of
from strategies.updates import ClientUpdate


class LimitSettings(Settings):
    """Bounds of an update."""

    clip_norm: float = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="no update is longer than so many times the median of the round; 0: as long as it is",
    )
    max_norm: Multiple = Field(
        10.0,
        ge=0.0,
        le=1e9,
        description="an update is rejected that is longer than so many times the median of the round, and than so many "
        "times the model that it started from; 0: none is",
    )
    max_examples: int = Field(
        10**7, ge=1, le=10**12, description="an update that claims to stand for more training examples is rejected"
    )


@dataclass(frozen=True)
class Limits:
    """Bounds for the updates of one round.

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
    caps : Caps
        What an update may stand for.
    """

    max_examples: int = 10**7
    max_norm: float = 0.0
    clip_norm: float = 0.0
    caps: Caps = field(default_factory=Caps, compare=False)

    @property
    def measuring(self) -> bool:
        """Whether the length of an update is looked at."""
        return bool(self.max_norm or self.clip_norm)

    def implausible(self, updates: Sequence[ClientUpdate], lengths: Mapping[str, float]) -> dict[str, str]:
        """Return the clients whose updates are too long, and the reason; ``lengths``: by client."""
        if not self.max_norm or not updates:
            return {}
        usual = statistics.median(lengths[update.name] for update in updates)
        starts = {id(update.start): update.start for update in updates}  # most clients have the same
        sizes = {key: float(flat(start).norm()) for key, start in starts.items()}
        found: dict[str, str] = {}
        for update in updates:
            own, scale = lengths[update.name], max(usual, sizes[id(update.start)])
            if own > self.max_norm * scale > 0.0:
                found[update.name] = f"its norm is {own:.3g}; {self.max_norm:g} times {scale:.3g} is allowed"
        return found

    def clipped(
        self,
        updates: Sequence[ClientUpdate],
        lengths: Mapping[str, float],
        keep: Callable[[State], State] = lambda state: state,
    ) -> list[ClientUpdate]:
        """Return updates none of which is longer than ``clip_norm`` times the median; a second model is shortened, too.

        ``lengths``: as in `implausible`. ``keep`` is called with every model that was made, and gives it back.
        """
        if not self.clip_norm or not updates:
            return list(updates)
        limit = self.clip_norm * statistics.median(lengths[update.name] for update in updates)
        return [
            update if own <= limit else _shortened(update, limit / own, keep)
            for update in updates
            for own in (lengths[update.name],)
        ]

    def weighed(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """Return updates that stand for no more examples than `caps` allows, with label counts in proportion.

        A training loss, which is only reported, is bounded, too.
        """
        counted = self.caps.examples({update.name: float(update.num_examples) for update in updates})
        told = {update.name: update.train_loss for update in updates if math.isfinite(update.train_loss)}
        losses = self.caps.losses(told, "train-loss")
        return [
            replace(_standing_for(update, counted[update.name]), train_loss=losses.get(update.name, math.nan))
            for update in updates
        ]

    def weighed_in(self, updates: Sequence[ClientUpdate], clusters: Mapping[str, int]) -> list[ClientUpdate]:
        """Return updates that stand for no more examples than `caps` allows in their own cluster.

        Clients of a cluster may all have far fewer than most. Of two neither can be measured by the other.
        """
        counted: dict[str, float] = {}
        for own in members_of(updates, clusters).values():
            if len(own) > 2:
                said = {update.name: float(update.num_examples) for update in own}
                counted |= self.caps.examples(said, "num-examples in its cluster")
        return [_standing_for(update, counted.get(update.name, update.num_examples)) for update in updates]


class Lengths:
    """The Euclidean norm of what each update changes in the model, or the two, that it started from."""

    def __init__(self) -> None:
        self._last_start: tuple[State, Tensor] | None = None

    def of(self, update: ClientUpdate) -> float:
        """Measure one; those that start from the same model take less time one after the other."""
        if self._last_start is None or self._last_start[0] is not update.start:
            self._last_start = update.start, flat(update.start)
        first = float((flat(update.state) - self._last_start[1]).norm())
        second = update.second
        return first if second is None else math.hypot(first, float((flat(second.state) - flat(second.start)).norm()))


def _standing_for(update: ClientUpdate, most: float) -> ClientUpdate:
    """Return an update that stands for no more than so many examples."""
    if update.num_examples <= most:
        return update
    return replace(
        update, num_examples=math.floor(most), signature=update.signature and update.signature.counting(most)
    )


def _shortened(update: ClientUpdate, share: float, keep: Callable[[State], State]) -> ClientUpdate:
    second = update.second
    if second is not None:
        second = replace(second, state=keep(_nearer(second.start, second.state, share)))
    return replace(update, state=keep(_nearer(update.start, update.state, share)), second=second)


def _nearer(start: State, state: State, share: float) -> State:
    """Return a model that went a share of the way from its start."""
    return {
        name: (own.double() + share * (state[name].double() - own.double())).to(own.dtype)
        for name, own in start.items()
    }
