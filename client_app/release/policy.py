"""What leaves a client with ``privacy=plain``, and what every policy decides; docs/PRIVACY.md has the table."""

from collections.abc import Sequence

import torch
from torch import Tensor

from client_app.describe import early_signature, make_signature
from disue.config import ClientConfig
from disue.data import Examples
from disue.errors import FederationError
from disue.models import Classifier, State
from disue.signature import Signature, told_beside_updates
from disue.tasks import DataSummary, Task
from disue.tasks.classification import require_known
from disue.wire import CompareReply, EvaluateReply, HelloReply, HelloRequest, KeptReply, TrainReply

USUAL_PIXELS = (0.5, 0.25)
"""Mean and deviation that stand for those of a client's own pixels, where it does not tell them."""


class ReleasePolicy:
    """What decides what leaves: here everything as it is.

    With ``share-label-counts=false`` label counts do not leave.

    Parameters
    ----------
    config : ClientConfig
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config

    def hello(self, reply: HelloReply, asked: HelloRequest) -> HelloReply:
        """Return what is said of who this is."""
        return reply

    def description(self, name: str, description: Tensor) -> Tensor:
        """Return what is said of the data before training."""
        return description

    def digest(self, digest: str) -> str | None:
        """Return what tells whether the training data changed; None: that is not told."""
        return digest

    def signature(
        self, universal: Classifier, examples: Examples, device: torch.device, task: Task, covariance: bool = False
    ) -> Signature:
        """Return what is said of the data beside an update.

        See `told_beside_updates` for how features vary.
        """
        kind = told_beside_updates(self.config) if covariance else ""
        return make_signature(universal, examples, device, task, self.config.share_label_counts, kind)

    def features(self, model: Classifier, examples: Examples, device: torch.device, task: Task) -> Signature:
        """Return what is said of the features under a model, with a covariance of each stratum.

        Raises
        ------
        FederationError
            If label counts do not leave: the covariance of few examples shows how many they are.
        """
        if not self.config.share_label_counts:
            raise FederationError("share-label-counts=false: a client does not tell how the features of a class vary")
        return make_signature(model, examples, device, task, covariance="each")

    def early(
        self, initial: Classifier, examples: Examples, device: torch.device, task: Task, most: int, covariance: bool
    ) -> Signature:
        """Return what is said of early features (`early_signature`).

        Raises
        ------
        FederationError
            If label counts do not leave.
        """
        if not self.config.share_label_counts:
            raise FederationError("share-label-counts=false: a client does not tell of its early features")
        return early_signature(initial, examples, device, task, most, covariance)

    def candidates(self, candidates: Sequence[State]) -> Sequence[State]:
        """Return the candidates of which the choice is told."""
        return candidates

    def training(self, reply: TrainReply, start: State) -> TrainReply | KeptReply:
        """Return the trained model and its numbers."""
        return reply

    def evaluation(self, reply: EvaluateReply, task: Task) -> EvaluateReply:
        """Return the accuracies."""
        return reply

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Return how well the mixtures fit."""
        return reply


def usual_summary(summary: DataSummary | None, config: ClientConfig) -> DataSummary | None:
    """Return what stands for what a client would say of data of its own: all classes of the run, and usual pixels."""
    if summary is None:
        return None
    require_known(summary.class_names, config.class_names)
    mean, std = ((value,) * len(summary.mean) for value in USUAL_PIXELS)
    return DataSummary(config.class_names, mean, std)
