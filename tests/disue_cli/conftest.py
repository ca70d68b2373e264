"""What the tests of commands share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from disue_cli.main import main
from server_app.config import RunConfig

Refused = Callable[..., str]
"""From a command's words, and the status that it must end with, to what it said."""

Said = Callable[..., tuple[str, str]]
"""From a command's words to what it printed, and what it said beside that."""


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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Call `disue` with good input, and return what it wrote to both of its streams."""

    def call(*words: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["disue", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert not caught.value.code, err
        return out, err

    return call


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run of six clients that was killed in its first round."""
    directory = tmp_path / "killed"
    directory.mkdir()
    config = RunConfig(method="fedavg", alpha=0.7, model="mlp", num_server_rounds=1, report=False)
    clients = [f"client-{i}" for i in range(6)]
    settings = {"run": config.to_flower(), "federation": {"clients": clients, "partitions": 6}}
    (directory / "config.toml").write_text(tomli_w.dumps(settings))
    return directory
