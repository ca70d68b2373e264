"""What leaves a client with ``privacy=dp``: all that its data decide is clipped and made noisy before it leaves.

This is the Gaussian mechanism for whole clients, as in McMahan et al. 2018, but at the client: local.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from client_app.describe import make_signature
from client_app.release.budget import Budget
from client_app.release.gaussian import Draw, gaussian_mechanism
from client_app.release.policy import ReleasePolicy, usual_summary
from disue.config import ClientConfig
from disue.data import Examples
from disue.errors import ConfigError, FederationError
from disue.metrics import predict_logits
from disue.models import Classifier, State, flatten, subtract, unflatten
from disue.privacy.dp import COVERED_DESCRIPTIONS, FITS_UP_TO
from disue.seeding import torch_rng
from disue.signature import Signature
from disue.tasks import Task
from disue.wire import CompareReply, EvaluateReply, HelloReply, HelloRequest, TrainReply

NOISE_INPUTS = 64
LONGEST_PROTOTYPE = 2.0
"""In mean lengths of the features of noise."""


class NoisyRelease(ReleasePolicy):
    """Everything that the data decide is released with noise, or does not leave.

    The numbers of examples, from which those of steps follow, are taken to be public.

    Parameters
    ----------
    config : ClientConfig
        ``dp-clip``, ``dp-noise``.
    draw : callable
        Where the noise comes from.
    budget : Budget, optional
        What the node allows; all there is if there is none.
    """

    def __init__(self, config: ClientConfig, draw: Draw, budget: Budget | None = None) -> None:
        super().__init__(config)
        self.draw = draw
        self.budget = budget

    def hello(self, reply: HelloReply, asked: HelloRequest) -> HelloReply:
        """Say nothing of data that are the client's own but how many there are.

        Raises
        ------
        ConfigError
            If all that the run may ask for comes to more than the node allows.
        """
        if self.budget:
            self.budget.check_plan(asked)
        return replace(reply, summary=usual_summary(reply.summary, self.config))

    def description(self, name: str, description: Tensor) -> Tensor:
        """Release a description of unit length.

        Raises
        ------
        ConfigError
            If it has another length.
        """
        if name not in COVERED_DESCRIPTIONS:
            raise ConfigError(f"privacy: 'dp' does not cover the description '{name}'")
        noisy = self._released(description.flatten()).view_as(description)
        return F.normalize(noisy.flatten(), dim=0).view_as(description).float()

    def digest(self, digest: str) -> None:
        """Return None: whether two digests are equal is decided by the data, and no noise is in it."""

    def signature(
        self, universal: Classifier, examples: Examples, device: torch.device, task: Task, covariance: bool = False
    ) -> Signature:
        """Release the strata's shares and prototypes together; a stratum with little share after that is not there.

        Raises
        ------
        FederationError
            If a covariance is asked for: noise as large as its parts would be needed in each of its numbers.
        """
        if covariance:
            raise FederationError("privacy=dp: a client does not tell how its features vary")
        exact = make_signature(universal, examples, device, task)
        bound = usual_length(universal, task, device) * LONGEST_PROTOTYPE
        shares = exact.label_counts / exact.label_counts.sum()
        lengths = exact.prototypes.norm(dim=1, keepdim=True)
        points = exact.prototypes / lengths.clamp(min=bound)
        # Both parts are at most of unit length: shares add up to one, and the points are no longer than that.
        both = torch.cat([shares, (points * shares.sqrt().unsqueeze(1)).flatten()])
        noisy = self._released(both / math.sqrt(2.0)) * math.sqrt(2.0)
        told = _present(noisy[: len(shares)])
        scaled = noisy[len(shares) :].view_as(points) * bound
        prototypes = torch.where(told.unsqueeze(1) > 0, scaled / told.clamp(min=1e-12).sqrt().unsqueeze(1), 0.0)
        counts = _counts(told, len(examples)) if self.config.share_label_counts else (told > 0).double()
        return Signature(counts.float(), prototypes.float())

    def early(
        self, initial: Classifier, examples: Examples, device: torch.device, task: Task, most: int, covariance: bool
    ) -> Signature:
        """Refuse: noise does not cover it."""
        raise FederationError("privacy=dp: a client does not tell of its early features")

    def features(self, model: Classifier, examples: Examples, device: torch.device, task: Task) -> Signature:
        """Raise `FederationError`: the server is not to ask."""
        raise FederationError("privacy=dp: a client does not tell how its features vary")

    def candidates(self, candidates: Sequence[State]) -> Sequence[State]:
        """Raise `ConfigError` if there is a choice."""
        if candidates:
            raise ConfigError("privacy: 'dp' does not cover the choice of a model")
        return candidates

    def training(self, reply: TrainReply, start: State) -> TrainReply:
        """Release the update; its loss does not leave.

        Raises
        ------
        ConfigError
            If there is a second model.
        """
        if reply.second is not None:
            raise ConfigError("privacy: 'dp' does not cover a second model")
        update = flatten([tensor.double() for tensor in subtract(reply.state, start).values()])
        noisy = self._released(update, self.config.dp_clip)
        moved = unflatten(noisy, start)
        state = {name: (tensor.double() + moved[name]).to(tensor.dtype) for name, tensor in start.items()}
        return replace(reply, state=state, train_loss=None)

    def evaluation(self, reply: EvaluateReply, task: Task) -> EvaluateReply:
        """Release the accuracies, and how well the models fit, together; the loss on the test data does not leave."""
        unit = FITS_UP_TO * task.loss_unit
        units = {"universal_accuracy": 1.0, "expert_accuracy": 1.0, "personal_accuracy": 1.0}
        units |= {"universal_fit": unit, "expert_fit": unit}
        asked = {name: unit for name, unit in units.items() if getattr(reply, name) is not None}
        values = torch.tensor([getattr(reply, name) / unit for name, unit in asked.items()], dtype=torch.float64)
        side = math.sqrt(len(values))  # of the cube in which they are, from corner to corner of the unit ball
        noisy = (self._released((2.0 * values.clamp(0.0, 1.0) - 1.0) / side) * side + 1.0) / 2.0
        released = dict(zip(asked, noisy.clamp(0.0, 1.0).tolist(), strict=True))
        told = {name: value * asked[name] for name, value in released.items()}
        return replace(reply, universal_loss=None, **told)

    def comparison(self, reply: CompareReply) -> CompareReply:
        """Raise `FederationError`: the server is not to ask."""
        raise FederationError("privacy=dp: a client does not compare models")

    def _released(self, vector: Tensor, bound: float = 1.0) -> Tensor:
        if self.budget:
            self.budget.spend()
        return gaussian_mechanism(vector, bound, self.config.dp_noise, self.draw)


def usual_length(model: Classifier, task: Task, device: torch.device) -> float:
    """Return the mean length of the features of noise: whoever has the model knows it."""
    inputs = task.noise(NOISE_INPUTS, torch_rng("images of noise"))
    return float(predict_logits(model.body, inputs, device).norm(dim=1).mean())


def _present(shares: Tensor) -> Tensor:
    """Return noisy shares, (classes,), as shares; those below half of an equal share are zero, but for the largest."""
    kept = shares.clamp(min=0.0) * (shares >= 0.5 / len(shares))
    if not bool(kept.sum() > 0):
        return F.one_hot(shares.argmax(), len(shares)).to(shares)
    return kept / kept.sum()


def _counts(shares: Tensor, total: int) -> Tensor:
    """Return whole numbers, in about these shares, that add up to no more than the total."""
    counts = (shares * total).floor()
    return counts if bool(counts.sum() > 0) else F.one_hot(shares.argmax(), len(shares)).to(shares)
