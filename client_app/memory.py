"""What a client keeps from round to round, beside its data: a control variate, a head of its own.

A method on the server names one kind (`strategies.methods.base.Needs.memory`). The client does the rest: it prepares
its start by what it kept, and keeps something new when it has trained (`client_app.store`). Nothing of it leaves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from disue.errors import WireError, quoted_value
from disue.gradients import mean_gradient
from disue.models import State


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
    learning_rate, momentum : float
    """

    state: State
    steps: int
    learning_rate: float
    momentum: float = 0.0


class Memory(ABC):
    """One kind of memory."""

    @abstractmethod
    def part(self, model: State) -> State:
        """Return the part of a model whose names, shapes and types are those of what is kept."""

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
    option II. The server shares the variate of all, c, and the client keeps its own, c_i. With momentum, which the
    paper's clients have none of, (x - y_i) / (K eta) is `mean_gradient` in its general form.
    """

    def part(self, model: State) -> State:
        """Return the whole model."""
        return model

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return the start, and c - c_i."""
        if not shared:
            return Prepared(start)
        return Prepared(start, shared if kept is None else {name: shared[name] - kept[name] for name in shared})

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return c_i - c + (x - y_i) / (K eta)."""
        variate = mean_gradient(start, trained.state, trained.steps, trained.learning_rate, trained.momentum)
        for sign, own in ((1.0, kept), (-1.0, shared)):
            variate = {name: tensor + sign * own[name] for name, tensor in variate.items()} if own else variate
        return variate


class PersonalHead(Memory):
    """A head that the client does not share: its own, from the second round on.

    Arivazhagan et al., "Federated Learning with Personalization Layers", 2019 (FedPer).
    """

    def part(self, model: State) -> State:
        """Return the head."""
        return {name: tensor for name, tensor in model.items() if name.startswith("head.")}

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return the start with the client's own head."""
        return Prepared(start | kept if kept else start)

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return the trained head."""
        return self.part(trained.state)

    def told(self, start: State, trained: State) -> State:
        """Return the trained model with the head that the server sent."""
        return trained | self.part(start)


MEMORIES: dict[str, Memory] = {"control-variate": ControlVariate(), "personal-head": PersonalHead()}


def memory_of(kind: str) -> Memory:
    """Return a kind of memory; raise `WireError` if there is none of that name."""
    if kind not in MEMORIES:
        raise WireError(f"the request's memory is {quoted_value(kind)}; there are {', '.join(MEMORIES)}")
    return MEMORIES[kind]
