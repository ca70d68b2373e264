"""The errors a person meets. Each message names the value, what was expected and what to do."""

import errno

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What the system says when nothing more can be written."""
LONGEST_LINE = 2000
"""Letters of a message."""
LOGGER = "flwr.disue"
"""The logger for what users should know of their data: below Flower's, which writes the logs of servers and clients. A
command that does not load Flower prints its warnings on stderr."""


class DisueError(Exception):
    """Base of all errors raised on purpose; the message is one clear line, whatever is quoted in it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


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


def quoted_value(value: object, longest: int = 100) -> str:
    """Return a value from outside as a person would write it; of a long one the ends.

    Examples
    --------
    >>> quoted_value([1] * 10**6), quoted_value(0.5), quoted_value(None)
    ('a list of 1000000', '0.5', 'missing')
    """
    if value is None:
        return "missing"
    if isinstance(value, list | tuple | dict | set | str | bytes) and len(value) > longest:
        return f"a {type(value).__name__} of {len(value)}"
    return one_line(repr(value), longest)


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return text from anywhere as one line that a terminal shows as it is; of a very long one the ends.

    Examples
    --------
    >>> one_line("a name\\nof two lines"), one_line("\\x1b[2J"), one_line("1" * 50, 20)
    ('a name of two lines', '?[2J', '111111111 ... 111111')
    """
    if len(text) > longest:
        end = longest // 3
        text = f"{text[: longest - end - 5]} ... {text[-end:]}"
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)
