"""Going on with a run that was interrupted, after its last complete round."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from typing import Any

import tomli_w
from flwr.common.logger import log

from disue.errors import ConfigError, DataError, DisueError
from disue.files import inside, read_text, run_summary, user_path
from disue.source import source_hash
from server_app.callbacks.checkpoint import NOT_UNPACKED, Checkpoints, Saved
from server_app.callbacks.report_data import MEMBERSHIP, Move
from server_app.card import CARD
from server_app.config import RunConfig, stored_settings
from server_app.report.reading import Row, membership_moves, metrics_rows
from server_app.run_directory import default_directory
from strategies.rounds.state import OTHER_VERSION, restore

RECORDS = ("config.toml", "metrics.jsonl", MEMBERSHIP, "summary.json")
"""Files that a run writes as it goes on, beside its checkpoints."""


class RunCompleted(ConfigError):
    """Nothing is left to do of a run whose settings are as they were."""


@dataclass(frozen=True)
class ResumePoint:
    """What a run did before this process: nothing, if it is a new one.

    Attributes
    ----------
    checkpoints : Checkpoints
    saved : Saved or None
        The last checkpoint; None: the run is new, or was interrupted in its first round.
    rows : list of dict
        The lines of ``metrics.jsonl`` up to the checkpoint.
    moves : list of Move
        The lines of ``membership.csv`` up to the checkpoint.
    partitions : int or None
        Into how many parts the run's dataset is divided; 0: clients have data of their own; None: the run is new.
    traces : dict of str to str
        What was in the files that it was read from; see `traces_of`.
    """

    checkpoints: Checkpoints
    saved: Saved | None = None
    rows: list[Row] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    partitions: int | None = None
    traces: dict[str, str] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds are over."""
        return self.saved.round if self.saved else 0

    @property
    def can_go_on(self) -> bool:
        """Whether there is a checkpoint."""
        return self.saved is not None or self.checkpoints.has_saved

    def restore(self, parts: Mapping[str, object]) -> None:
        """Give parts what is known of them, if anything is; raise `DataError` if it is of another version."""
        if self.saved:
            for name, part in parts.items():
                try:
                    restore(part, self.saved.parts[name])
                except NOT_UNPACKED as error:
                    raise DataError(f"the checkpoint {OTHER_VERSION} ({name}: {error!r})") from None

    def check_unchanged(self, directory: Path) -> None:
        """Raise `ConfigError` if a process has written in the directory since this was read; ask under the lock."""
        now = traces_of(directory)
        changed = sorted(name for name in now.keys() | self.traces.keys() if now.get(name) != self.traces.get(name))
        if changed:
            raise ConfigError(
                f"resume-from: another process went on with the run in '{directory}' in the meantime ({changed[0]} is "
                "another); nothing was changed, see how the run stands"
            )

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Blame the checkpoint for what breaks before another round is saved: it may say anything, if it was changed.

        Raises
        ------
        DataError
            In place of whatever is neither an error of ours nor the system's.
        """
        try:
            yield
        except (DisueError, OSError):
            raise
        except Exception as error:
            if self.saved is None or self.checkpoints.has_saved:
                raise
            what = f"the checkpoint of round {self.saved.round}"
            raise DataError(f"{what} cannot be gone on from ({error!r}); it {OTHER_VERSION}, or was changed") from error

    def tell(self) -> None:
        """Log what may surprise."""
        if self.saved is None:
            return
        for name in self.saved.damaged:
            log(WARNING, "checkpoint %s is damaged; going on from the one before it, round %s", name, self.saved.round)
        if self.saved.source != source_hash():
            log(WARNING, "the run was begun by other source code; its next rounds may not be as they would have been")


def look_back(config: RunConfig) -> ResumePoint:
    """Read what the run in ``resume-from`` did; nothing is changed there.

    Raises
    ------
    ConfigError
        If it is over, or the config is not that run's.
    DataError
        If there is no run, or what it left is damaged.
    """
    directory = default_directory(config)
    traces = traces_of(directory)
    if config.output_dir and user_path(config.output_dir, "output-dir").resolve() != directory.resolve():
        raise ConfigError(f"output-dir: got '{config.output_dir}'; a run goes on in its own directory, '{directory}'")
    was, partitions = read_settings(directory)
    for name in ("checkpoint", "experts", "generated", "tensorboard"):
        inside(directory, name)
    _check_config(config, was, directory)
    checkpoints = Checkpoints(directory)
    saved = checkpoints.load()
    rows: list[Row] = read_text(directory / "metrics.jsonl", metrics_rows, [])
    done = saved.round if saved else 0
    if saved is None and len(rows) > 1:
        raise DataError(f"'{directory}': the run has {len(rows)} rounds and no checkpoint; it cannot go on")
    if [row["round"] for row in rows[:done]] != list(range(1, done + 1)):
        raise DataError(f"'{directory / 'metrics.jsonl'}' is damaged (rounds 1 to {done} are not all there)")
    _check_rounds(config, was, directory, done)
    moves = read_text(directory / MEMBERSHIP, membership_moves) if done else []
    return ResumePoint(
        checkpoints, saved, rows[:done], [move for move in moves if move.round <= done], partitions, traces
    )


def traces_of(directory: Path) -> dict[str, str]:
    """Return the name and the SHA-256 of the files that say how far a run is; the names of checkpoints hold theirs."""
    paths = [path for name in RECORDS for path in [directory / name] if path.is_file()]
    traces = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return traces | {path.name: path.name for path in directory.glob("checkpoint/round-*")}


def read_settings(directory: Path) -> tuple[RunConfig, int]:
    """Return the config of a run, and into how many parts its dataset is divided.

    Raises
    ------
    DataError
        If there is no run in the directory, or its ``config.toml`` is damaged.
    """
    path = directory / "config.toml"
    if not path.is_file():
        raise DataError(f"resume-from: there is no run in '{directory}' (config.toml is missing)")

    def parse(text: str) -> tuple[RunConfig, int]:
        settings = stored_settings(text)
        return RunConfig.from_flower(settings["run"]), int(settings["federation"]["partitions"])

    return read_text(path, parse)


def resumed_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the config of the run in ``resume-from``, with the other values in place of its own.

    Raises
    ------
    ConfigError, DataError
        If a value is not allowed, or there is no run there.
    """
    directory = default_directory(RunConfig.from_flower({"resume-from": values["resume-from"]}))
    was, _ = read_settings(directory)
    places = {"output-dir": str(directory), "resume-from": str(directory)}
    return RunConfig.from_flower(was.to_flower() | places | {**values, "resume-from": str(directory)})


def _check_config(config: RunConfig, was: RunConfig, directory: Path) -> None:
    before, now, changeable = was.to_flower(), config.to_flower(), config.changeable_keys()
    other = [key for key in now if key not in changeable and now[key] != before[key]]
    if other:
        settings = _in_words(before, other)
        raise ConfigError(f"{other[0]}: got {now[other[0]]!r}; the run in '{directory}' goes on with {settings} only")


def _in_words(values: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Return settings as `flwr run --run-config` takes them."""
    return " ".join(tomli_w.dumps({key: values[key]}).strip().replace(" = ", "=", 1) for key in keys)


def _check_rounds(config: RunConfig, was: RunConfig, directory: Path, done: int) -> None:
    rounds = config.num_server_rounds
    if rounds < done or (rounds == done < was.num_server_rounds):
        raise ConfigError(
            f"num-server-rounds: got {rounds}; the run in '{directory}' has {done} of {was.num_server_rounds} behind "
            f"it, use at least {done + 1}"
        )
    summary: Row = read_text(directory / "summary.json", run_summary, {})
    last_files = [CARD, *(["report.html"] if config.report else [])]
    finished = summary.get("status") == "completed" and all((directory / name).exists() for name in last_files)
    if rounds == done and finished:
        raise RunCompleted(
            f"resume-from: the run in '{directory}' is completed; num-server-rounds above {done} would extend it"
        )
