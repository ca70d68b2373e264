"""What a client keeps from round to round, beside its data: a control variate, a head of its own.

A method on the server names one kind (`strategies.methods.base.Needs.memory`). The client does the rest: it prepares
its start by what it kept, and keeps something new when it has trained. Nothing of it leaves.

It is kept by the client's name and the round. A round that is repeated, or that the server goes on from after a break,
finds what was kept before it. It is in the client's context, where Flower holds it as long as the process of the node
lives, and in files below ``state-path``, where the node config has one. `forget` is called when the run is over.
"""

import hashlib
import re
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, Context

from disue.errors import WireError, quoted_value
from disue.files import read_tensors, user_path, write_tensors
from disue.models import State

RECORD = "memory"
ROUNDS = 2
"""How many rounds are kept: the last one may be repeated."""


@dataclass(frozen=True)
class Prepared:
    """Where a client's training starts.

    Attributes
    ----------
    start : State
    drift : State or None
        What is added to every gradient; None: nothing.
    """

    start: State
    drift: State | None = None


@dataclass(frozen=True)
class Trained:
    """What the training came to.

    Attributes
    ----------
    state : State
    steps : int
        Of the optimiser.
    learning_rate : float
    """

    state: State
    steps: int
    learning_rate: float


class Memory(ABC):
    """One kind of memory."""

    @abstractmethod
    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return where the training starts.

        Parameters
        ----------
        start : State
            As the server sent it.
        kept : State or None
            What the client kept; None: this is its first round.
        shared : State
            What the server shares with all; empty: nothing.
        """

    @abstractmethod
    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return what the client keeps now; ``start``: as the server sent it."""

    def told(self, start: State, trained: State) -> State:
        """Return the model that leaves."""
        return trained


class ControlVariate(Memory):
    """A client's share in the direction of all, so that it does not drift away from them.

    Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1,
    option II. The server shares the variate of all, c, and the client keeps its own, c_i.
    """

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return the start, and c - c_i."""
        if not shared:
            return Prepared(start)
        return Prepared(start, shared if kept is None else {name: shared[name] - kept[name] for name in shared})

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return c_i - c + (x - y_i) / (K eta)."""
        scale = 1.0 / (trained.steps * trained.learning_rate)
        variate = {name: scale * (tensor - trained.state[name]) for name, tensor in start.items()}
        for sign, own in ((1.0, kept), (-1.0, shared)):
            variate = {name: tensor + sign * own[name] for name, tensor in variate.items()} if own else variate
        return variate


class PersonalHead(Memory):
    """A head that the client does not share: its own, from the second round on.

    Arivazhagan et al., "Federated Learning with Personalization Layers", 2019 (FedPer).
    """

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return the start with the client's own head."""
        return Prepared(start | kept if kept else start)

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return the trained head."""
        return {name: tensor for name, tensor in trained.state.items() if _is_of_head(name)}

    def told(self, start: State, trained: State) -> State:
        """Return the trained model with the head that the server sent."""
        return trained | {name: tensor for name, tensor in start.items() if _is_of_head(name)}


MEMORIES: dict[str, Memory] = {"control-variate": ControlVariate(), "personal-head": PersonalHead()}


def memory_of(kind: str) -> Memory:
    """Return a kind of memory; raise `WireError` if there is none of that name."""
    if kind not in MEMORIES:
        raise WireError(f"the request's memory is {quoted_value(kind)}; there are {', '.join(MEMORIES)}")
    return MEMORIES[kind]


def _is_of_head(name: str) -> bool:
    return name.startswith("head.")


class ClientStore:
    """Where one client's memory of a run is.

    Parameters
    ----------
    context : Context
        Of this client.
    name : str
        Its stable name.
    run : str
        What the server calls the run: 16 hexadecimal digits.
    place : str, optional
        ``state-path`` of the node config; None: it is in the context only.

    Raises
    ------
    WireError
        If the server calls the run something else.
    DataError
        If ``state-path`` can be no path.
    """

    def __init__(self, context: Context, name: str, run: str, place: str | None = None) -> None:
        if not re.fullmatch("[0-9a-f]{16}", run):
            raise WireError(f"the request's run is {quoted_value(run)}; expected 16 hexadecimal digits")
        self.context = context
        owner = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.folder = None if place is None else user_path(place, "state-path") / run / owner

    def read(self, kind: str, server_round: int) -> State | None:
        """Return what was kept in the last round before this one; None: nothing was.

        Raises
        ------
        DataError
            If its file is damaged.
        """
        before = max((number for number in self._rounds(kind) if number < server_round), default=None)
        if before is None:
            return None
        record = self.context.state.array_records.get(_record(kind, before))
        if record is not None:
            return dict(record.to_torch_state_dict())
        return None if self.folder is None else read_tensors(self._path(kind, before))[0]

    def write(self, kind: str, server_round: int, state: State) -> None:
        """Keep something of a round, and drop what is older than the last `ROUNDS`, or of rounds that are undone."""
        self.context.state[_record(kind, server_round)] = ArrayRecord(state)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._path(kind, server_round), state, {"round": server_round})
        kept = sorted(number for number in self._rounds(kind) if number <= server_round)
        for number in self._rounds(kind) - set(kept[-ROUNDS:]):
            self.context.state.pop(_record(kind, number), None)
            if self.folder is not None:
                self._path(kind, number).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove everything of the run."""
        for name in [name for name in self.context.state if name.startswith(f"{RECORD}-")]:
            del self.context.state[name]
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    def _rounds(self, kind: str) -> set[int]:
        names = [name.rpartition("-") for name in self.context.state]
        found = {int(number) for stem, _, number in names if stem == f"{RECORD}-{kind}"}
        if self.folder is not None:
            found |= {int(path.stem.rpartition("-")[2]) for path in self.folder.glob(f"{kind}-*.safetensors")}
        return found

    def _path(self, kind: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{number:06}.safetensors"


def _record(kind: str, number: int) -> str:
    return f"{RECORD}-{kind}-{number}"
