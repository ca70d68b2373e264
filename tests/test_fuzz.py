"""A few spoilt inputs for everything that reads from outside; `benchmarks/fuzz.py` has as many as you like."""

import logging
import warnings
from collections.abc import Iterator

import pytest
from fuzzing.messages import replies
from fuzzing.running import feed
from fuzzing.target import Target
from fuzzing.targets import make_targets

SLOW = ("server", "resume")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in make_targets(tmp_path_factory.mktemp("fuzz") / "targets")}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        yield
    logging.disable(logging.NOTSET)


NAMES = [
    *("images", "npz", "idx", "mnist", "own-folders", "run-config", "node-config", "assignments", "hosts"),
    *("run-load", "run-report", "run-card", "run-watch", "run-resume", "run-compare", "checkpoint", "resume"),
    *(f"reply-{kind}" for kind in ("hello", "describe", "train", "evaluate", "compare", "features", "early", "bundle")),
    *(f"reply-{kind}" for kind in ("kept", "parcels", "masked")),
    *(
        f"request-{kind}"
        for kind in ("hello", "describe", "train", "evaluate", "compare", "features", "early", "bundle")
    ),
    *(f"request-{kind}" for kind in ("forget", "share", "mask", "unmask")),
    *("error-reply", "server", "commands"),
]


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_input_is_taken_or_refused_in_one_line(targets: dict[str, Target], name: str) -> None:
    feed(targets[name], 2 if name in SLOW else 20)


@pytest.mark.parametrize("kind", replies())
def test_a_reply_is_valid_before_it_is_spoilt(targets: dict[str, Target], kind: str) -> None:
    targets[f"reply-{kind}"].feed(replies()[kind].content)


def test_no_target_is_forgotten(targets: dict[str, Target]) -> None:
    assert sorted(targets) == sorted(NAMES)


def test_what_is_not_handled_is_found() -> None:
    from hypothesis import strategies as st

    def careless(value: int) -> None:
        if value > 50:
            raise KeyError(value)

    with pytest.raises(KeyError):
        feed(Target("careless", st.integers(0, 1000), careless), 100)
