"""How the experts vote on a proxy sample, and what the clients' class prototypes add to the vote.

A teacher gives each expert a weight per sample, or per sample and class. The vote is the weighted mean of the
experts' logits, each with its cluster's label prior taken out if that is wished, plus how near the sample lies to the
prototypes of each class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Settings
from disue.registry import Registry
from strategies.distillation.prototypes import prototype_vote
from strategies.stored import stored

PRIOR_SMOOTHING = 0.03
"""Share of the uniform distribution in a prior that is taken out: of a class that a cluster hardly has its expert knows
nothing, and its logits must not be raised as if it did."""


class TeacherSettings(Settings):
    """The vote of the experts."""

    teacher: str = Field(
        "auto",
        description="how the experts vote on a proxy sample; auto: class-weighted on generated samples, else prototype",
    )


@dataclass(frozen=True)
class TeacherInputs:
    """What a teacher may look at.

    Attributes
    ----------
    expert_logits : (experts, samples, classes) tensor
    label_counts : (experts, classes) tensor
        Training examples per class in each expert's cluster.
    distances : (experts, samples, classes) tensor
        Squared distance to the nearest prototype of each class among the clients behind an expert, infinite where none
        of them has the class; the smallest of a sample is one on the mean.
    labels : (samples,) tensor, optional
        The samples' classes, where they are known: on samples that were generated for a class.
    """

    expert_logits: Tensor
    label_counts: Tensor
    distances: Tensor
    labels: Tensor | None = None


Teacher = Callable[[TeacherInputs], Tensor]
"""From evidence to weights that sum to one over the experts: (experts, samples, classes), or (experts, samples, 1) for
a teacher that weighs all classes of a sample alike."""

TEACHERS: Registry[Callable[..., Tensor]] = Registry("teacher")
"""Name -> `Teacher`; one that has keys takes their ``settings``, too."""


@TEACHERS.register("mean")
def mean_weights(evidence: TeacherInputs) -> Tensor:
    """Every expert counts the same (FedDF, Lin et al. 2020, eq. 3)."""
    experts, samples, _ = evidence.expert_logits.shape
    return torch.full((experts, samples, 1), 1.0 / experts)


@TEACHERS.register("class-weighted")
def class_weights(evidence: TeacherInputs) -> Tensor:
    """An expert counts for a class by its cluster's share of that class's examples.

    W[k, y] = n_k(y) / sum_j n_j(y): DisUE's adaptive category weighting, as in FedFTG (Zhang et al. 2022, eq. 8). Where
    a sample's class is known, the whole vote on it is weighted by that class; else each class's logit by its own.
    """
    counts = evidence.label_counts
    totals = counts.sum(dim=0)
    shares = torch.where(totals > 0, counts / totals.clamp(min=1e-12), 1.0 / len(counts))
    if evidence.labels is not None:
        return shares[:, evidence.labels].unsqueeze(-1)
    return shares.unsqueeze(1).expand_as(evidence.expert_logits)


@TEACHERS.register("confidence")
def confidence_weights(evidence: TeacherInputs) -> Tensor:
    """An expert counts by how sure it is: softmax_k(-H_k(x)), H_k the entropy (nats) of its prediction."""
    log_probabilities = torch.log_softmax(evidence.expert_logits, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1, keepdim=True)
    return torch.softmax(-entropy, dim=0)


@TEACHERS.register("prototype")
def prototype_weights(evidence: TeacherInputs) -> Tensor:
    """An expert counts by how near the sample lies to a prototype of one of its clients.

    With d_k(x) the squared distance from x to the nearest prototype of expert k, in units of the mean of min_k d_k over
    the samples, the weights are softmax_k(-d_k(x)).
    """
    return torch.softmax(-evidence.distances.amin(dim=2), dim=0).unsqueeze(-1)


@TEACHERS.register("auto")
def auto_weights(evidence: TeacherInputs) -> Tensor:
    """`class_weights` for samples whose class is known, else `prototype_weights`."""
    return prototype_weights(evidence) if evidence.labels is None else class_weights(evidence)


def teacher_logits(
    evidence: TeacherInputs, weights: Tensor, log_priors: Tensor | None = None, prototype_weight: float = 0.0
) -> Tensor:
    """Return the vote, (samples, classes).

    Parameters
    ----------
    evidence : TeacherInputs
    weights : (experts, samples, classes or 1) tensor
    log_priors : (experts, classes) tensor, optional
        Vote with ``logit_k - log p_k(y)``, p_k the label shares of cluster k: what is left is the evidence in
        the sample, not how common a class is in the cluster (logit adjustment, Menon et al. 2021).
    prototype_weight : float (default: 0.0)
        Of `prototype_vote`, beside which the experts' vote has weight 1.
    """
    logits = evidence.expert_logits
    if log_priors is not None:
        logits = logits - log_priors.unsqueeze(1)
    vote = (weights * logits).sum(dim=0)
    return vote + prototype_weight * prototype_vote(evidence.distances) if prototype_weight else vote


def log_priors_of(label_counts: Tensor) -> Tensor:
    """Return log label shares, smoothed, from label counts; both (..., classes). Without any count they are alike."""
    totals = label_counts.sum(dim=-1, keepdim=True)
    return _smoothed(torch.where(totals > 0, label_counts / totals, 1.0 / label_counts.shape[-1])).log()


def estimated_log_priors(expert_logits: Tensor) -> Tensor:
    """Return log label shares, smoothed, (experts, classes), that nobody told: the mean prediction of each expert.

    ``expert_logits``: (experts, samples, classes), on samples of which each class has an equal part.
    """
    return _smoothed(torch.softmax(expert_logits, dim=-1).mean(dim=1)).log()


def _smoothed(shares: Tensor) -> Tensor:
    return (1.0 - PRIOR_SMOOTHING) * shares + PRIOR_SMOOTHING / shares.shape[-1]


@stored
@dataclass(frozen=True)
class VoteSummary:
    """Who taught what in a round.

    Attributes
    ----------
    experts : list of str
        Their labels: cluster numbers, with the architecture where that is not the run's own.
    weights : (experts, samples) tensor
        Each expert's weight in the vote on each proxy sample, for the stratum that was voted.
    votes : (samples,) tensor
        The stratum that was voted: a class, where there are classes.
    """

    experts: list[str]
    weights: Tensor
    votes: Tensor

    def by_stratum(self, num_strata: int) -> tuple[Tensor, Tensor]:
        """Return mean weights, (experts, strata), and how many samples were voted each stratum, (strata,)."""
        counts = torch.bincount(self.votes, minlength=num_strata)
        sums = torch.zeros(len(self.experts), num_strata).index_add_(1, self.votes, self.weights)
        return sums / counts.clamp(min=1), counts


def vote_summary(experts: Sequence[str], weights: Tensor, votes: Tensor) -> VoteSummary:
    """Return who taught what.

    Parameters
    ----------
    experts : list of str
        Their labels, in the order of the weights.
    weights : (experts, samples, strata or 1) tensor
    votes : (samples,) tensor
        The strata that were voted.
    """
    chosen = weights[..., 0] if weights.shape[2] == 1 else weights[:, torch.arange(len(votes)), votes]
    return VoteSummary(list(experts), chosen, votes)
