"""Where the clients' models of a round are until they are averaged."""

import ctypes
import mmap
import os
import tempfile
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from disue.config import Changeable, Settings
from disue.models import State

REGION_BYTES = 2**28
"""The file is mapped in pieces of this size: every map is one of the few thousand that a process may have. After as
many bytes of models, freed memory is given back."""
ALIGNMENT = 64


class StoreSettings(Settings):
    """Memory of the server."""

    shared: ClassVar[bool] = True

    reply_memory: Changeable[int] = Field(
        1024,
        ge=0,
        le=10**9,
        description="MiB of clients' models that the server holds in memory in a round; it keeps the others in a file "
        "in the run directory",
    )


class UpdateStore:
    """Keeps a round's models in memory as far as they fit, and the others in a file that is mapped into it.

    A model from the file is read as any other is; its pages are the operating system's to drop and to read again. The
    file has no name, and is gone with the last tensor that is in it.

    Parameters
    ----------
    memory : int, optional
        Bytes of models that are kept in memory; None: all are.
    directory : Path, optional
        Where the file is; not where files are in memory. None: the usual one for temporary files.
    """

    def __init__(self, memory: int | None = None, directory: Path | None = None) -> None:
        self.memory = memory
        self.directory = directory
        self.clear()

    def clear(self) -> None:
        """Begin with nothing; what was put here before stays good."""
        self.in_memory = 0
        self.in_file = 0
        self._since_given_back = 0
        self._file: IO[bytes] | None = None
        self._region: np.memmap[tuple[int], np.dtype[np.uint8]] | None = None
        self._used = 0

    def put(self, state: State) -> State:
        """Return a model that is kept in place of this one.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        size = sum(tensor.nbytes for tensor in state.values())
        self._since_given_back += size
        if self._since_given_back >= REGION_BYTES:
            self._since_given_back = 0
            give_back_freed_memory()
        if self.memory is None or self.in_memory + size <= self.memory:
            self.in_memory += size
            return state
        self.in_file += size
        return {name: self._written(tensor) for name, tensor in state.items()}

    def _written(self, tensor: Tensor) -> Tensor:
        content = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        file, region = self._room_for(len(content))
        begin, end = self._used, self._used + len(content)
        self._used = -(-end // ALIGNMENT) * ALIGNMENT
        file.seek(region.offset + begin)
        while content:  # not through the map: a full disk is an error here, and there it would kill the process
            content = content[file.write(content) :]
        return torch.from_numpy(region[begin:end]).view(tensor.dtype).view(tensor.shape)

    def _room_for(self, size: int) -> tuple[IO[bytes], np.memmap[tuple[int], np.dtype[np.uint8]]]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.directory, buffering=0)  # noqa: SIM115
        if self._region is None or self._used + size > len(self._region):
            end = self._file.seek(0, os.SEEK_END)
            offset = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._region = np.memmap(self._file, np.uint8, "r+", offset, (max(REGION_BYTES, size),))
            self._used = 0
        return self._file, self._region


def give_back_freed_memory() -> None:
    """Let the C library return to the operating system what is free, where it can.

    The messages in which models come are freed one by one, and what is kept of each lies between them: glibc would hold
    on to most of it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
