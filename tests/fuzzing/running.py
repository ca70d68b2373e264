"""Feeds targets with inputs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, given, settings

from fuzzing.target import Target

SECONDS = 60
"""After which an input counts as one that never ends."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def feed(target: Target, inputs: int, seed: int | None = None) -> tuple[int, int]:
    """Feed a target with so many inputs; return how many it took, and how many it refused.

    The first input after which it raises anything but `DisueError` is made small, and raised with what it raised.
    """
    taken = refused = 0

    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(target.inputs)
    def try_out(value: object) -> None:
        nonlocal taken, refused
        with limited(SECONDS):
            if target.try_out(value):
                taken += 1
            else:
                refused += 1

    if seed is not None:
        import hypothesis

        try_out = hypothesis.seed(seed)(try_out)
    try_out()
    return taken, refused
