"""Where a client keeps something from round to round: by its name and the round, until the run is over.

A round that is repeated, or that the server goes on from after a break, finds what was kept before it. It is in files
below ``state-path``, where the node config has one: a process that is started anew finds it there. Else it is in the
client's context, where Flower holds it as long as the process of the node lives.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from flwr.app import ArrayRecord, Context

from disue.errors import ConfigError, DataError, DiskError, WireError, quoted_value
from disue.files import PARTS, read_tensors, user_path, write_tensors
from disue.models import State
from disue.models.state import alike
from disue.nodes import NodeConfig

RECORD = "memory-"
SUFFIX = ".safetensors"


class ClientStore:
    """One client's memory of a run.

    Parameters
    ----------
    context : Context
        Of this client.
    name : str
        Its stable name.
    run : str
        What the server calls the run: 16 hexadecimal digits.
    state_path : str, optional
        ``state-path`` of the node config; None: what is kept is in the context.

    Raises
    ------
    WireError
        If the server calls the run something else.
    DataError
        If ``state-path`` can be no path.
    """

    def __init__(self, context: Context, name: str, run: str, state_path: str | None = None) -> None:
        if not re.fullmatch("[0-9a-f]{16}", run):
            raise WireError(f"the request's run is {quoted_value(run)}; expected 16 hexadecimal digits")
        self._place: _InContext | _InFiles = _InContext(context)
        if state_path is not None:
            self._place = _InFiles(user_path(state_path, "state-path"), run, name)

    def read(self, kind: str, server_round: int, like: State) -> State | None:
        """Return what was kept in the last round before this one; None: nothing was.

        Parameters
        ----------
        kind : str
        server_round : int
        like : State
            Has the names, shapes and types that it must have.

        Raises
        ------
        DataError
            If its file is damaged, or is not what this client kept.
        DiskError
            If the folder cannot be read.
        """
        before = max((number for number in self._rounds(kind) if number < server_round), default=None)
        if before is None:
            return None
        kept = self._place.read(_entry(kind, before))
        if not alike(kept, like):
            raise DataError(f"{self._place}: {_entry(kind, before)} is not of the run's model; remove it")
        return kept

    def write(self, kind: str, server_round: int, state: State) -> None:
        """Keep something of a round, and drop what is too old, or of rounds that are undone.

        Raises
        ------
        DiskError
            If it cannot be written; what was kept before is still there.
        """
        self._place.write(_entry(kind, server_round), state)
        rounds = self._rounds(kind)
        kept = sorted(number for number in rounds if number <= server_round)[-self._place.rounds :]
        for number in rounds - set(kept):
            self._place.drop(_entry(kind, number))

    def forget(self) -> None:
        """Remove everything of the run; raise `DiskError` if that is not possible."""
        self._place.clear()

    def _rounds(self, kind: str) -> set[int]:
        found = (re.fullmatch(rf"{re.escape(kind)}-([0-9]{{6,}})", name) for name in self._place.names())
        return {int(match[1]) for match in found if match}


def _entry(kind: str, number: int) -> str:
    return f"{kind}-{number:06}"


class _InContext:
    """Keeps what it is given in the client's context. It does not outlive a break: only the last round is repeated."""

    rounds = 2

    def __init__(self, context: Context) -> None:
        self.records = context.state

    def __str__(self) -> str:
        return "the context"

    def names(self) -> list[str]:
        return [name.removeprefix(RECORD) for name in self.records if name.startswith(RECORD)]

    def read(self, name: str) -> State:
        return dict(self.records.array_records[RECORD + name].to_torch_state_dict())

    def write(self, name: str, state: State) -> None:
        self.records[RECORD + name] = ArrayRecord(state)

    def drop(self, name: str) -> None:
        del self.records[RECORD + name]

    def clear(self) -> None:
        for name in self.names():
            self.drop(name)


class _InFiles:
    """Keeps what it is given in a folder of this client and this run.

    A run that is interrupted in a round may go on from the checkpoint before its last one, two rounds earlier.
    """

    rounds = 3

    def __init__(self, state_path: Path, run: str, name: str) -> None:
        owner = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.folder = state_path / f"{run}-{owner}"
        self.about = {"run": run, "client": owner}

    def __str__(self) -> str:
        return f"state-path: '{self.folder}'"

    def names(self) -> list[str]:
        with self._usable("read"):
            paths = list(self.folder.iterdir()) if self.folder.exists() else []
        return [path.stem for path in paths if path.suffix == SUFFIX]

    def read(self, name: str) -> State:
        with self._usable("read"):
            state, about = read_tensors(self._path(name))
            if about != self.about | {"entry": name}:
                raise DataError(f"'{self._path(name)}' is of another client, run or round; remove it")
            return state

    def write(self, name: str, state: State) -> None:
        with self._usable("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob(PARTS):  # of a process that was ended while it wrote
                part.unlink(missing_ok=True)
            write_tensors(self._path(name), state, self.about | {"entry": name})

    def drop(self, name: str) -> None:
        with self._usable("written"):
            self._path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        with self._usable("removed"):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    @contextmanager
    def _usable(self, how: str) -> Iterator[None]:
        """Name the key in errors, and raise `DiskError` in place of the system's."""
        try:
            yield
        except (DataError, DiskError) as error:
            raise type(error)(f"state-path: {error}") from error
        except OSError as error:
            why = f"'{self.folder}' cannot be {how} ({error.strerror or error})"
            raise DiskError(f"state-path: {why}; use a folder that the node may read and write") from error


def check_state_path(node: NodeConfig) -> None:
    """Make the folder of a node's ``state-path``, if it has one, and write to it.

    Raises
    ------
    ConfigError
        If that is not possible.
    """
    if node.state_path is None:
        return
    try:
        folder = Path(node.state_path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            probe.write(b"1")
            probe.flush()
            os.fsync(probe.fileno())
    except (OSError, ValueError, RuntimeError) as error:  # a null byte; a home of nobody
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"node config of '{node.client}': state-path: got '{node.state_path}', where nothing can be written "
            f"({why}); use a folder that the node may read and write, or none"
        ) from None
