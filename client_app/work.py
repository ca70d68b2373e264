"""The local training that a client was asked for, step by step: several clients can take the middle one together."""

from collections.abc import Sequence

from flwr.app import Context, Message

from client_app.client import LocalClient
from client_app.together import train_together
from client_app.training import TrainingResult
from disue.models import State, get_state
from disue.wire import TrainReply, TrainRequest


class Training:
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
        self.discretion = self.client.discretion("train", self.request.server_round)
        candidates = self.discretion.candidates(self.request.candidates)
        self.choice = self.client.best_of(candidates, self.request.objective) if candidates else None
        self.start: State = self.request.start or self.request.candidates[self.choice or 0]
        self.signature = None
        if self.request.signature:
            universal = self.client.model(self.request.universal or self.start)
            self.signature = self.discretion.signature(universal, self.client.data.train, self.client.device)
        self.rng = self.client.rng("train", self.request.server_round)
        self.trained: tuple[State, TrainingResult] | None = None

    def carry_out(self) -> None:
        """Train."""
        model, result = self.client.train(self.start, self.request.objective, self.rng)
        self.trained = get_state(model), result

    def reply(self) -> Message:
        """Return what is told of it."""
        assert self.trained is not None
        state, result = self.trained
        reply = TrainReply(
            state=state,
            num_examples=len(self.client.data.train),
            train_loss=result.loss,
            steps=result.steps,
            signature=self.signature,
            choice=self.choice,
        )
        return self.discretion.training(reply, self.start).to_message(self.message)


def carry_out_together(trainings: Sequence[Training], at_once: int) -> None:
    """Carry out the trainings of several clients of a node, those of one architecture and objective ``at_once``."""
    alike: dict[object, list[Training]] = {}
    for training in trainings:
        alike.setdefault((training.client.model_name, training.request.objective), []).append(training)
    for group in alike.values():
        for first in range(0, len(group), at_once):
            _carry_out_as_one(group[first : first + at_once])


def _carry_out_as_one(trainings: Sequence[Training]) -> None:
    client = trainings[0].client
    trained = train_together(
        client.model(trainings[0].start),
        [training.start for training in trainings],
        [training.client.data.train for training in trainings],
        client.config,
        trainings[0].request.objective,
        [training.rng for training in trainings],
        client.device,
        client.num_classes,
    )
    for training, own in zip(trainings, trained, strict=True):
        training.trained = own
