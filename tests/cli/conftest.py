"""What the tests of commands share."""

import sys
from collections.abc import Callable

import pytest

from disue.cli.main import main

Refused = Callable[..., str]
"""From a command's words, and the status that it must end with, to what it said."""


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Call `disue` with bad input: it must say one line, and end with status 2 or another one that is given."""

    def call(*words: str, status: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["disue", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr().err
        assert caught.value.code == status
        assert said.count("\n") == 1
        return said

    return call
