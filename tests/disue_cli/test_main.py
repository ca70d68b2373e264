"""What all commands share: help, and what is said where something cannot be."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("predict", ["Run directory.", "Images, folders of images, .npz files"]),
        ("assign", ["Run directory.", "A folder with a folder of images per class"]),
        ("run", ["A SuperLink connection in Flower's config.toml."]),
    ],
)
def test_help_says_what_positional_arguments_are(
    said: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, command: str, words: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out, _ = said(command, "--help")
    for word in words:
        assert word in out


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "RUN", "~nobody-has-this-name/a.png"),
        ("predict", "~nobody-has-this-name", "a.png"),
        ("assign", "RUN", "a" * 300),
        ("export", "a" * 300, "--format", "torch"),
        ("report", "a" * 300),
        ("watch", "line\nbreak"),
        ("simulate", "--set", 'output-dir="a\\u0000b"'),
        ("simulate", "--set", "output-dir=\udcff"),
        ("simulate", "--set", "proxy=path:~nobody-has-this-name", "--engine", "inline"),
        ("simulate", "--resume", "~nobody-has-this-name"),
        ("compare", "--output", "\udcff"),
        ("compare", "--output", "DIR", "--seeds", "1" * 5000),
    ],
)
def test_what_can_be_no_path_is_one_line(refused: Callable[..., str], finished: Path, words: tuple[str, ...]) -> None:
    line = refused(*(str(finished) if word == "RUN" else word for word in words)).rstrip("\n")
    assert line.startswith("disue: ")
    assert line.isprintable()


def test_what_the_system_refuses_is_one_line(
    refused: Callable[..., str], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise OSError(13, "Permission denied", "/data/file")

    monkeypatch.setattr("disue_cli.commands.predict.load_run", closed)
    assert (
        refused("predict", str(finished), "a.png", status=1)
        == "disue: '/data/file' cannot be used (Permission denied)\n"
    )
