"""What of what clients tell of their features is believed."""

from collections.abc import Mapping
from dataclasses import replace

from disue.signature import FEWEST_COUNTED, Signature
from strategies.aggregation.caps import Caps
from strategies.distillation.prototypes import believed_counts


def believed(told: Mapping[str, Signature], caps: Caps, limit: float, counts_told: bool = True) -> dict[str, Signature]:
    """Return what clients told, as far as it is believed; of whom nothing is left, nothing.

    A class that a client counts and has no prototype of does not count, as only zeros stand there. Nor does a prototype
    that lies too far from what others call so. The rest is no larger than the others allow (`Caps.features`).

    Parameters
    ----------
    told : mapping of client to Signature
        All under one model.
    caps : Caps
    limit : float
        For `believed_counts`; 0: all prototypes count.
    counts_told : bool (default: True)
        Whether clients tell their label counts. If not, each class that one has counts once.
    """
    counts = {name: own.counts_with_prototypes() for name, own in told.items()}
    if not counts_told:
        counts = {name: (own > 0).float() for name, own in counts.items()}
    if limit and counts:
        points = [told[name].prototypes for name in counts]
        counts = dict(zip(counts, believed_counts(list(counts.values()), points, limit), strict=True))
    counted = {name: own for name, own in counts.items() if float(own.sum()) >= FEWEST_COUNTED}
    return caps.features({name: replace(told[name], label_counts=own) for name, own in counted.items()})


def with_capped_counts(told: Mapping[str, Signature], caps: Caps) -> dict[str, Signature]:
    """Return signatures of which none counts for much more than the others (`Caps.examples`).

    For messages that say nothing else by which label counts could be bounded.
    """
    counts = caps.examples({name: float(own.label_counts.sum()) for name, own in told.items()}, "label-counts")
    return {name: own.counting(counts[name]) for name, own in told.items()}
