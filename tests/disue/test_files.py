"""Files of a run directory: what is written stays there, and what is read ends."""

import os
from pathlib import Path

import pytest

from disue.errors import DataError, one_line
from disue.files import (
    inside,
    json_numbers,
    part_of,
    read_tensors,
    read_text,
    run_settings,
    user_path,
    write_whole,
)


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    part_of(tmp_path / "run" / "a.json").symlink_to(tmp_path / "precious")
    (tmp_path / "run" / "a.json").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "run" / "a.json", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "run" / "a.json").read_text() == "new"
    assert not (tmp_path / "run" / "a.json").is_symlink()


def test_a_folder_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "there").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "out").symlink_to(tmp_path)
    (tmp_path / "run" / "loop").symlink_to("loop")
    assert inside(tmp_path / "run", "missing") == tmp_path / "run" / "missing"
    inside(tmp_path / "run", "there")
    (tmp_path / "run" / "file").touch()
    for name in ("loop", "file"):
        with pytest.raises(DataError, match=f"{name}' is no folder; remove it"):
            inside(tmp_path / "run", name)
    with pytest.raises(DataError, match="out' leads out of the run directory"):
        inside(tmp_path / "run", "out")
    with pytest.raises(DataError, match="leads out"):
        inside(tmp_path / "run", "../other")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_might_never_end_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DataError, match="it is no file"):
        read_text(path, str, "")
    with pytest.raises(DataError, match="it is no file"):
        read_tensors(path)


def test_text_that_no_parser_takes_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"[" * 100_000, b"\xff", b'{"a": 1e999}', b'{"a": [1]}', b'{"a": ' + b"9" * 400 + b"}", b"[]"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"'{path}' is damaged"):
            read_text(path, json_numbers)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5000, "nested too deeply"),
        ("run = 3", r"no \[run\]"),
        ("[run]\nseed = 'a'", "run.seed is 'a', not int"),
        ("[run]\nseed = true", "run.seed is True, not int"),
        ("[run]\nalpha = inf", "run.alpha.*finite"),
        (f"[run]\nnew = {10**30}", "run.new"),
        ("[run]\n[federation]\nclients = [1]", "federation.clients.0: input should be a valid string"),
        ("[run]\n[task]\nclasses = 3", "task.classes"),
        ("[run]\n[versions]\nflwr = 1", "versions.flwr"),
    ],
)
def test_settings_of_other_types_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(DataError, match=words):
        read_text(tmp_path / "config.toml", run_settings)


def test_settings_of_another_version_are_read() -> None:
    assert run_settings("[run]\nalpha = 1\nnew-key = 'a'\n[more]\nx = 1")["run"] == {"alpha": 1, "new-key": "a"}


@pytest.mark.parametrize("text", ["~nobody-has-this-name/x", "a" * 300, "a\0b"])
def test_what_can_be_no_path_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="^--output: .* cannot be used"):
        user_path(text, "--output")


def test_errors_are_one_printable_line() -> None:
    error = DataError("a\nb \x1b[31m \u202e \ud800" + "x" * 10_000 + "end")
    assert str(error).isprintable()
    assert str(error).startswith("a b ?[31m ? ?xxx")
    assert str(error).endswith("xend")
    assert len(str(error)) == 2000
    assert one_line("as it is") == "as it is"
