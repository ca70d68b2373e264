"""A disk that is full ends a run with one line, and what was written before is whole."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import FAST
from resuming import left_by

from disue.errors import DataError, DiskError
from disue.files import append, write_tensors, write_whole
from disue_cli.engines.inline import run_inline
from server_app.callbacks.checkpoint import Checkpoints
from server_app.config import RunConfig
from server_app.resume import resumed_config

SMALL = FAST | {
    "num-server-rounds": 2,
    "distill-steps": 3,
    "train-examples": 30,
    "global-test-size": 50,
    "num-clusters": 2,
    "report": True,
}
CLIENTS = 4
STEP = 5
"""Every so manieth write of a run is tried as the first that fails."""


def config_for(directory: Path) -> RunConfig:
    return RunConfig.from_flower(SMALL | {"output-dir": str(directory)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run, and how many writes it takes."""
    directory, writes, real = tmp_path_factory.mktemp("whole") / "run", 0, os.fsync

    def counting(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        real(descriptor)

    os.fsync = counting  # type: ignore[assignment]
    try:
        run_inline(config_for(directory), CLIENTS)
    finally:
        os.fsync = real
    return directory, writes


def full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a disk full for good after so many writes."""
    real, left = os.fsync, writes

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("part", range(STEP))
def test_a_disk_that_is_full_at_any_moment_is_one_line_and_the_run_goes_on_when_there_is_room(
    whole: tuple[Path, int], tmp_path: Path, part: int
) -> None:
    expected, writes = whole
    assert writes >= 30
    for moment in range(part, writes, 2 * STEP):
        directory = tmp_path / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            full_after(moment, patch)
            with pytest.raises(DiskError) as caught:
                run_inline(config_for(directory), CLIENTS)
        line = str(caught.value)
        assert line.startswith(f"'{directory}/")
        assert line.endswith("' cannot be written (No space left on device); make room there")
        assert "\n" not in line
        assert not list(directory.rglob("*.part"))
        if not (directory / "config.toml").exists():
            shutil.rmtree(directory)
            run_inline(config_for(directory), CLIENTS)
        elif not is_complete(directory, expected):
            run_inline(resumed_config({"resume-from": str(directory)}), CLIENTS)
        assert left_by(directory) == left_by(expected)


def is_complete(directory: Path, expected: Path) -> bool:
    """Return whether only the last write failed, after which there is nothing to do."""
    return left_by(directory).keys() == left_by(expected).keys() and (directory / "report.html").exists()


def test_a_file_that_grew_too_large_is_the_same(tmp_path: Path) -> None:
    """A limit of the system's own, which the checkpoint of the second round meets."""
    directory, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(row: dict[str, Any]) -> None:
        if row["round"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(
            DiskError, match=r"checkpoint/round-000002-\w+.safetensors' cannot be .* \(File too large\)"
        ):
            run_inline(config_for(directory), CLIENTS, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    saved = Checkpoints(directory).load()
    assert saved is not None
    assert (saved.round, saved.damaged) == (1, [])
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "cannot be written (File too large)" in summary["error"]
    run_inline(resumed_config({"resume-from": str(directory)}), CLIENTS)
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, b"new" * 100),
        lambda path: append(path, "new" * 100),
        lambda path: write_tensors(path, {}, {"text": "new" * 100}),
    ],
    ids=["whole", "append", "tensors"],
)
def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        with pytest.raises(DiskError, match=f"^'{path}' cannot be written"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text().startswith("old")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_other_troubles_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", "")
    assert not issubclass(DiskError, DataError)
