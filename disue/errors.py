"""The errors a person meets. Each message names the value, what was expected and what to do."""

import errno

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What the system says when nothing more can be written."""


class DisueError(Exception):
    """Base of all errors raised on purpose; the message is one clear line."""


class ConfigError(DisueError):
    """A run config key or value is not allowed."""


class DataError(DisueError):
    """A dataset is missing, damaged, or too small for what was asked of it."""


class WireError(DisueError):
    """A message does not have the agreed form."""


class FederationError(DisueError):
    """The clients that are there cannot carry the run (too few, too many failures, wrong code)."""


class TooFewUpdates(FederationError):
    """Fewer clients than are needed sent a usable update."""


class DiskError(DisueError):
    """A file cannot be written: the disk is full, or is failing."""
