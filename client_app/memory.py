"""What a client keeps from round to round, beside its data: a control variate, a model or a head of its own.

A method on the server names one kind (`strategies.methods.base.Needs.memory`). The client does the rest: it prepares
its start by what it kept, and keeps something new when it has trained (`client_app.store`). Nothing of it leaves.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from disue.errors import WireError, quoted_value
from disue.gradients import mean_gradient
from disue.models import State, head_of, trained


@dataclass(frozen=True)
class Prepared:
    """Where a client's training starts.

    Attributes
    ----------
    start : State
    drift : State or None
        What is added to every gradient; None: nothing.
    anchor : State or None
        What a proximal term holds the model near; None: the start.
    """

    start: State
    drift: State | None = None
    anchor: State | None = None

    @property
    def plain(self) -> bool:
        """Whether the start is all that there is to say."""
        return self.drift is None and self.anchor is None


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

    def part(self, model: State) -> State:
        """Return the part of a model whose names, shapes and types are those of what is kept; for most kinds all."""
        return model

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return where the training starts; most kinds do not change it.

        Parameters
        ----------
        start : State
            As the server sent it.
        kept : State or None
            What the client kept; None: this is its first round.
        shared : State
            What the server shares with all; empty: nothing.
        """
        return Prepared(start)

    def second(self, start: State, kept: State | None) -> State | None:
        """Return where a second model starts, which is trained beside and kept; most kinds have none."""
        return None

    @abstractmethod
    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return what the client keeps now.

        ``start``: as the server sent it. ``trained``: the second model, if there is one.
        """

    def told(self, start: State, trained: State) -> State:
        """Return the model that leaves."""
        return trained

    def personal(self, sent: State, kept: State | None) -> State:
        """Return the model that the client uses, where the server sent it this one; most kinds do not change it."""
        return sent


class ControlVariate(Memory):
    """A client's share in the direction of all, so that it does not drift away from them.

    Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1,
    option II. The server shares the variate of all, c, and the client keeps its own, c_i. With momentum, which the
    paper's clients have none of, (x - y_i) / (K eta) is `mean_gradient` in its general form.
    """

    def part(self, model: State) -> State:
        """Return the parameters, each of which has a gradient."""
        return trained(model)

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


class PersonalModel(Memory):
    """A model that the client does not share, trained beside the one that it is sent, and held near that.

    Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1.
    """

    def second(self, start: State, kept: State | None) -> State:
        """Return the client's own model; in its first round, the one that it was sent."""
        return kept or start

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return the second model."""
        return trained.state

    def personal(self, sent: State, kept: State | None) -> State:
        """Return the client's own model, if it has trained one."""
        return kept or sent


class PersonalHead(Memory):
    """A head that the client does not share: its own, from the second round on.

    Arivazhagan et al., "Federated Learning with Personalization Layers", 2019 (FedPer); Collins et al., "Exploiting
    Shared Representations for Personalized Federated Learning", ICML 2021 (FedRep).
    """

    def part(self, model: State) -> State:
        """Return the head."""
        return head_of(model)

    def prepare(self, start: State, kept: State | None, shared: State) -> Prepared:
        """Return the start with the client's own head."""
        return Prepared(self.personal(start, kept))

    def keep(self, start: State, trained: Trained, kept: State | None, shared: State) -> State:
        """Return the trained head."""
        return self.part(trained.state)

    def told(self, start: State, trained: State) -> State:
        """Return the trained model with the head that the server sent."""
        return trained | self.part(start)

    def personal(self, sent: State, kept: State | None) -> State:
        """Return the model with the client's own head, if it has trained one."""
        return sent | kept if kept else sent


MEMORIES: dict[str, Memory] = {
    "control-variate": ControlVariate(),
    "personal-head": PersonalHead(),
    "personal-model": PersonalModel(),
}


def memory_of(kind: str) -> Memory:
    """Return a kind of memory; raise `WireError` if there is none of that name."""
    if kind not in MEMORIES:
        raise WireError(f"the request's memory is {quoted_value(kind)}; there are {', '.join(MEMORIES)}")
    return MEMORIES[kind]
