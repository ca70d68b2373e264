"""What both sides know of ``privacy=dp``: what a reply releases, and what cannot be released.

A release is a vector that is no longer than its bound, with Gaussian noise of ``dp-noise`` times the bound in every
coordinate. Whatever a client's data are, the vector is at most twice the bound away: that is the sensitivity.
"""

from flwr.app import Message, MessageType

from disue.wire.describe import DESCRIBE

SENSITIVITY = 2.0
"""In bounds: how far apart the vectors of two clients can be."""

COVERED_DESCRIPTIONS = ("initial-prototypes",)
"""Those of unit length."""

FITS_UP_TO = 2.0
"""Cross-entropies are released up to so many times that of a model that knows nothing."""


def releases_of(request: Message) -> int:
    """Return how many releases are in the reply to a request."""
    kind = request.metadata.message_type
    if kind == MessageType.TRAIN:
        return 2 if request.content["config"]["signature"] else 1
    return 1 if kind in (DESCRIBE, MessageType.EVALUATE) else 0
