"""What leaves a client with ``privacy=secure``: sketches; all else stays until it is hidden in a sum."""

import math
from dataclasses import replace

import torch
from flwr.app import Context
from torch import Tensor

from client_app.release.gaussian import Draw
from client_app.release.policy import ReleasePolicy, usual_summary
from client_app.secagg import keep
from disue.comparing import FROM_UPDATE, Trained
from disue.config import ClientConfig
from disue.data import Examples
from disue.errors import FederationError
from disue.models import Classifier, State
from disue.privacy.secagg import Contribution
from disue.privacy.sketch import sketch
from disue.signature import Signature
from disue.tasks import Task
from disue.wire import CompareReply, EvaluateReply, HelloReply, HelloRequest, KeptReply, TrainReply

STEPS_OF_ACCURACY = (20, 10, 5, 2, 1)
"""Into how many steps accuracies are rounded; the most that the client has test examples for."""
DIGITS_OF_LOSS = 2


class SketchedRelease(ReleasePolicy):
    """The server gets sketches to cluster by; numbers, prototypes and updates are hidden in the sums of clusters.

    Parameters
    ----------
    config : ClientConfig
        ``sketch-size``, ``sketch-noise``, and by what clients are compared.
    draw : callable
        Where the noise in sketches comes from.
    name : str
        The client's.
    server_round : int
    context : Context or None
        Keeps what is hidden.
    """

    def __init__(self, config: ClientConfig, draw: Draw, name: str, server_round: int, context: Context | None) -> None:
        super().__init__(config)
        self.draw = draw
        self.name = name
        self.server_round = server_round
        self.context = context

    def hello(self, reply: HelloReply, asked: HelloRequest) -> HelloReply:
        """Say nothing of data that are the client's own, nor how many there are."""
        return replace(reply, num_examples=0, summary=usual_summary(reply.summary, self.config))

    def description(self, name: str, description: Tensor) -> Tensor:
        """Return a sketch of what is said of the data."""
        return self._sketch(description)

    def early(
        self, initial: Classifier, examples: Examples, device: torch.device, task: Task, most: int, covariance: bool
    ) -> Signature:
        """Refuse: a client tells of its features in sums only."""
        raise FederationError("privacy=secure: a client does not tell of its early features")

    def features(self, model: Classifier, examples: Examples, device: torch.device, task: Task) -> Signature:
        """Raise `FederationError`: the server is not to ask."""
        raise FederationError("privacy=secure: a client tells of its features in sums only")

    def training(self, reply: TrainReply, start: State) -> KeptReply:
        """Keep the model and its numbers; a sketch is all that leaves, where clients are compared by their updates.

        Methods that compare clients ask for their prototypes, too.
        """
        assert reply.train_loss is not None
        assert self.context is not None
        own = Contribution(reply.num_examples, reply.train_loss, reply.steps, reply.state, reply.signature)
        keys = keep(own.to_vector(), self.server_round, self.context)
        from_update = FROM_UPDATE.get(self.config.signature)
        if reply.signature is None or from_update is None:
            return KeptReply(keys, digest=reply.digest)
        sketch = self._sketch(from_update(Trained(self.name, start, reply.state, reply.signature)))
        return KeptReply(keys, sketch, reply.digest)

    def evaluation(self, reply: EvaluateReply, task: Task) -> EvaluateReply:
        """Return the accuracies and losses, rounded: exact accuracies would show how many test examples there are."""
        told: dict[str, float] = {}
        for name in ("universal_accuracy", "expert_accuracy", "personal_accuracy"):
            if (accuracy := getattr(reply, name)) is not None:
                told[name] = round_accuracy(accuracy, reply.num_examples)
        for name in ("universal_loss", "universal_fit", "expert_fit"):
            if (loss := getattr(reply, name)) is not None:
                told[name] = round(loss, DIGITS_OF_LOSS)
        return replace(reply, num_examples=1, personal_steps=0, **told)

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Return how well the mixtures fit, rounded."""
        return CompareReply(tuple(round(fit, DIGITS_OF_LOSS) for fit in reply.fits))

    def _sketch(self, vector: Tensor) -> Tensor:
        size, noise = self.config.sketch_size, self.config.sketch_noise
        exact = sketch(vector, size, self.config.seed)
        if noise == 0.0:
            return exact
        noisy: Tensor = exact + noise * float(vector.norm()) / math.sqrt(size) * self.draw(size)
        return noisy.float()


def round_accuracy(share: float, examples: int) -> float:
    """Return a share of so many examples, rounded to steps that are no finer than one example.

    Every step is the rounded value of some share then, whatever their number: which steps occur does not tell it.

    Examples
    --------
    >>> round_accuracy(4 / 7, 7), round_accuracy(301 / 777, 777)
    (0.6, 0.4)
    """
    steps = next(steps for steps in STEPS_OF_ACCURACY if steps <= examples)
    right = round(share * examples)
    return (2 * steps * right + examples) // (2 * examples) / steps
