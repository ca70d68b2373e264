"""The local training that a client was asked for, step by step: several clients can take the middle one together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import Context, Message

from client_app import memory
from client_app.client import LocalClient
from client_app.memory import Prepared, memory_of
from client_app.store import ClientStore
from client_app.train import TrainingResult
from client_app.train_batched import train_batched
from disue.models import State, get_state, trained
from disue.wire import TrainReply, TrainRequest

Trained = tuple[State, TrainingResult]
"""A model after its training, and the numbers of that."""
SECOND = "second"
"""Of what the order of examples is drawn for a second model, so that the first is trained as it is alone."""


class TrainingJob:
    """Phase L of one client: from the given start, or from the best candidate, on its own data.

    Parameters
    ----------
    message : Message
        A `TrainRequest`.
    context : Context
        Says which client it is.
    """

    def __init__(self, message: Message, context: Context) -> None:
        self.message = message
        self.request = TrainRequest.from_message(message)
        self.client = LocalClient(context, self.request.task)
        self.policy = self.client.policy("train", self.request.server_round)
        candidates = self.policy.candidates(self.request.candidates)
        self.choice = self.client.best_of(candidates, self.request.objective) if candidates else None
        self.start: State = self.request.start or self.request.candidates[self.choice or 0]
        self.signature = None
        if self.request.signature:
            universal = self.client.model(self.request.universal or self.start)
            train, device, task = self.client.data.train, self.client.device, self.client.task
            self.signature = self.policy.signature(universal, train, device, task, self.request.covariance)
        self.rng = self.client.rng("train", self.request.server_round)
        self.memory = memory_of(self.request.memory) if self.request.memory else None
        self.kept: State | None = None
        self.prepared = Prepared(self.start)
        if self.memory:
            like = self.memory.part(self.start)
            self.kept = self._store().read(self.request.memory, self.request.server_round, like)
            self.prepared = self.memory.prepare(self.start, self.kept, self.request.shared)

    def run(self) -> Trained:
        """Return what the start came to."""
        model, result = self.client.train(self.prepared, self.request.objective, self.rng, self.request.server_round)
        return get_state(model), result

    @property
    def plain(self) -> bool:
        """Whether the start is all that there is to say of the training, so that others can take it together.

        Not of a model with statistics: an example that fills a batch up would be in them.
        """
        told = self.prepared.plain and not self.request.objective.head_epochs and self.client.config.plain_sgd
        return told and trained(self.start).keys() == self.start.keys()

    def run_second(self) -> Trained | None:
        """Return what a second model came to, which is held near the start of the first; None: there is none.

        It is one that the server sent, or one that the client keeps.
        """
        second = self.request.second
        if second is None and self.memory:
            second = self.memory.second(self.start, self.kept)
        if second is None:
            return None
        objective = replace(self.request.objective, prox_mu=self.request.objective.second_mu)
        rng = self.client.rng(SECOND, self.request.server_round)
        begun = Prepared(second, anchor=self.start)
        model, result = self.client.train(begun, objective, rng, self.request.server_round)
        return get_state(model), result

    def remember(self, trained: Trained, second: Trained | None) -> State:
        """Keep what the client is to remember, and return the model that leaves."""
        state, _ = trained
        if self.memory is None:
            return state
        to_keep, result = second or trained
        config = self.client.config
        learning_rate = config.learning_rate_in(self.request.server_round)
        own = memory.Trained(to_keep, result.steps, learning_rate, config.momentum)
        kept = self.memory.keep(self.start, own, self.kept, self.request.shared)
        if all(bool(tensor.isfinite().all()) for tensor in kept.values()):  # else the server refuses the model, too
            self._store().write(self.request.memory, self.request.server_round, kept)
        return self.memory.told(self.start, state)

    def _store(self) -> ClientStore:
        return self.client.store(self.request.run)

    def reply(self, trained: Trained) -> Message:
        """Return what is told of what the start came to; a second model is trained before."""
        _, result = trained
        second = self.run_second()
        digest = self.policy.digest(self.client.digest(self.request.run)) if self.request.digest else None
        reply = TrainReply(
            state=self.remember(trained, second),
            num_examples=len(self.client.data.train),
            train_loss=result.loss,
            steps=result.steps + (second[1].steps if second else 0),
            signature=self.signature,
            choice=self.choice,
            second=second[0] if second and self.request.second is not None else None,
            digest=digest,
        )
        return self.policy.training(reply, self.start).to_message(self.message)


def run_batched(jobs: Mapping[int, TrainingJob], at_once: int) -> dict[int, Trained]:
    """Run the jobs of several clients of a node, those of one architecture and objective ``at_once``.

    A client whose memory, or objective, asks for more than the plain training trains alone.

    Parameters
    ----------
    jobs : mapping of seat to TrainingJob
    at_once : int
        Clients that are trained as one network, at most.
    """
    alike: dict[object, list[int]] = {}
    trained: dict[int, Trained] = {}
    for seat, job in jobs.items():
        if job.plain:
            alike.setdefault((job.client.model_name, job.request.objective), []).append(seat)
        else:
            trained[seat] = job.run()
    for group in alike.values():
        for first in range(0, len(group), at_once):
            seats = group[first : first + at_once]
            trained |= zip(seats, _train_as_one([jobs[seat] for seat in seats]), strict=True)
    return trained


def _train_as_one(jobs: Sequence[TrainingJob]) -> list[Trained]:
    client = jobs[0].client
    return train_batched(
        client.model(jobs[0].prepared.start),
        [job.prepared.start for job in jobs],
        [job.client.data.train for job in jobs],
        client.config,
        jobs[0].request.objective,
        [job.rng for job in jobs],
        client.device,
        client.task,
        jobs[0].request.server_round,
    )
