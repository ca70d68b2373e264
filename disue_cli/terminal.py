"""What a command's words are written to: any encoding, a closed stream, a pipe whose reader has gone."""

import codecs
import os
import sys

from disue.errors import DiskError

PLAIN = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
    **dict(
        zip(
            "•·–—−─━…×≥≤“”‘’",
            ["*", ".", "-", "-", "-", "-", "-", "...", "x", ">=", "<=", '"', '"', "'", "'"],
            strict=True,
        )
    ),
}
"""What stands for a letter that an encoding lacks; any other is written as its number, like ``\\u732b``."""
HANDLER = "disue-plain"


def prepare_streams() -> None:
    """Let standard output and error take every text, whatever their encoding, and be written to if they are closed."""
    codecs.register_error(HANDLER, _in_plain_letters)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed; else the next file that is opened would be in its place
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=HANDLER)


def say(text: str, error: bool = False) -> None:
    """Print to standard output, or to standard error, in its own encoding: `typer.echo` takes another for ASCII."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    plain = "".join(PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return plain, error.end


def finish_output() -> None:
    """Write what is left to be written.

    Raises
    ------
    DiskError
        If it cannot be written.
    SystemExit
        If nobody reads it any more: with status 1, without a word.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        sys.exit(1)
    except OSError as error:
        drop_output()
        raise DiskError(f"the output cannot be written ({error.strerror or error})") from None


def drop_output() -> None:
    """Write nothing more to standard output: Python would try again at its end, and complain."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the end of the process)
