"""How the experts vote on a proxy sample, and what the clients' class prototypes add to the vote.

A teacher gives each expert a weight per sample, or per sample and class, and says what evidence there is of the classes
beside the experts. The vote is the weighted mean of the experts' logits, or of their probabilities, each with its
cluster's label prior taken out if that is wished, plus that evidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from disue.config import Settings
from disue.discriminant import gate_weights, stratum_evidence
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
        description="how the experts vote on a proxy sample; auto: class-weighted on generated samples, else "
        "discriminant",
    )


@dataclass(frozen=True)
class TeacherInputs:
    """What a teacher may look at.

    Attributes
    ----------
    find_logits : callable
        Returns logits, (experts, samples, classes): all, or of those samples alone that each expert is asked for,
        (experts, samples) booleans, and zeros else.
    label_counts : (experts, classes) tensor
        Training examples per class in each expert's cluster.
    find_distances, find_log_densities : callable
        Return `distances` and `log_densities`, which not every teacher looks at.
    labels : (samples,) tensor, optional
        The samples' classes, where they are known: on samples that were generated for a class.
    """

    find_logits: Callable[[Tensor | None], Tensor]
    label_counts: Tensor
    find_distances: Callable[[], Tensor]
    find_log_densities: Callable[[], Tensor]
    labels: Tensor | None = None

    @cached_property
    def expert_logits(self) -> Tensor:
        """What the experts say of all samples, (experts, samples, classes)."""
        return self.find_logits(None)

    def logits_of(self, asked: Tensor) -> Tensor:
        """Return what each expert says of the samples that it is asked for, (experts, samples, classes); else zeros."""
        if "expert_logits" in vars(self):  # a teacher looked at them
            return torch.where(asked.unsqueeze(2), self.expert_logits, 0.0)
        return self.expert_logits if bool(asked.all()) else self.find_logits(asked)

    @cached_property
    def distances(self) -> Tensor:
        """Squared distance to the nearest prototype of each class among an expert's clients, (experts, samples,
        classes), infinite where none of them has the class; the smallest of a sample is one on the mean.
        """
        return self.find_distances()

    @cached_property
    def log_densities(self) -> Tensor:
        """How likely a sample is as one of each class of each expert's clients, (experts, samples, classes).

        See `disue.discriminant`.
        """
        return self.find_log_densities()


@dataclass(frozen=True)
class Weighing:
    """How much each expert counts, and what else speaks for a class.

    Attributes
    ----------
    weights : (experts, samples, classes) or (experts, samples, 1) tensor
        They sum to one over the experts; the latter weigh all classes of a sample alike.
    evidence : callable, optional
        Returns logits, (samples, classes): the evidence of the classes beside the experts. None: there is none.
    of_probabilities : bool
        Whether the experts' probabilities are weighed, and not their logits: one expert that is sure then cannot
        outvote others that know better.
    """

    weights: Tensor
    evidence: Callable[[], Tensor] | None = None
    of_probabilities: bool = False

    @property
    def asked(self) -> Tensor:
        """Which expert counts for which sample, (experts, samples): `LEAST_SHARE` of the one that does most, or more.

        For one class at least. Nobody has to compute what the others say.
        """
        return (self.weights >= LEAST_SHARE * self.weights.amax(dim=0)).any(dim=2)

    def among(self, asked: Tensor) -> "Weighing":
        """Return it with weight for those experts alone that are asked, (experts, samples)."""
        weights = torch.where(asked.unsqueeze(2), self.weights, 0.0)
        return replace(self, weights=weights / weights.sum(dim=0))


Teacher = Callable[[TeacherInputs], Weighing]

Looks = Literal["never", "where classes are unknown", "always"]


class Teachers(Registry[Callable[..., Weighing]]):
    """Name -> `Teacher`. One that is registered with settings takes them as its argument ``settings``, too."""

    def __init__(self) -> None:
        super().__init__("teacher")
        self._by_densities: dict[str, Looks] = {}

    def register(
        self, name: str, settings: type[Settings] | None = None, log_densities: Looks = "never"
    ) -> Callable[[Callable[..., Weighing]], Callable[..., Weighing]]:
        """Return a decorator that enters a teacher under ``name``; see `Registry.register`.

        ``log_densities``: of which samples it looks at these. If it says so, clients may be asked for more, of which
        better ones are made (early features). Where it looks without a word, they are of what clients tell anyhow.
        """
        enter = super().register(name, settings)

        def entered(teacher: Callable[..., Weighing]) -> Callable[..., Weighing]:
            teacher = enter(teacher)
            self._by_densities[name] = log_densities
            return teacher

        return entered

    def looks_at_densities(self, name: str, classes_known: bool) -> bool:
        """Return whether a teacher looks at the densities of samples whose classes are known, or are not."""
        looks = self._by_densities[name]
        return looks == "always" or (looks == "where classes are unknown" and not classes_known)


TEACHERS = Teachers()

LEAST_PROBABILITY = 1e-6
"""Of a class, in a vote of probabilities."""
LEAST_SHARE = 0.01
"""Of the weight of the expert that counts most: one that counts less is not asked."""


def by_prototypes(inputs: TeacherInputs, weights: Tensor) -> Weighing:
    """Return these weights; how near a sample lies to the prototypes of each class is the evidence beside."""
    return Weighing(weights, lambda: prototype_vote(inputs.distances))


@TEACHERS.register("mean")
def mean_teacher(inputs: TeacherInputs) -> Weighing:
    """Every expert counts the same (FedDF, Lin et al. 2020, eq. 3)."""
    experts, samples, _ = inputs.expert_logits.shape
    return by_prototypes(inputs, torch.full((experts, samples, 1), 1.0 / experts))


def class_weights(label_counts: Tensor, expert_logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return each cluster's share of a class's examples, (experts, samples, classes or 1).

    W[k, y] = n_k(y) / sum_j n_j(y): DisUE's adaptive category weighting, as in FedFTG (Zhang et al. 2022, eq. 8). Where
    a sample's class is known, the whole vote on it is weighted by that class; else each class's logit by its own.
    """
    totals = label_counts.sum(dim=0)
    shares = torch.where(totals > 0, label_counts / totals.clamp(min=1e-12), 1.0 / len(label_counts))
    return shares.unsqueeze(1).expand_as(expert_logits) if labels is None else shares[:, labels].unsqueeze(-1)


@TEACHERS.register("class-weighted")
def class_teacher(inputs: TeacherInputs) -> Weighing:
    """An expert counts for a class by its cluster's share of that class's examples."""
    return by_prototypes(inputs, class_weights(inputs.label_counts, inputs.expert_logits, inputs.labels))


@TEACHERS.register("confidence")
def confidence_teacher(inputs: TeacherInputs) -> Weighing:
    """An expert counts by how sure it is: softmax_k(-H_k(x)), H_k the entropy (nats) of its prediction."""
    log_probabilities = torch.log_softmax(inputs.expert_logits, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1, keepdim=True)
    return by_prototypes(inputs, torch.softmax(-entropy, dim=0))


@TEACHERS.register("prototype")
def prototype_teacher(inputs: TeacherInputs) -> Weighing:
    """An expert counts by how near the sample lies to a prototype of one of its clients.

    With d_k(x) the squared distance from x to the nearest prototype of expert k, in units of the mean of min_k d_k over
    the samples, the weights are softmax_k(-d_k(x)).
    """
    return by_prototypes(inputs, torch.softmax(-inputs.distances.amin(dim=2), dim=0).unsqueeze(-1))


@TEACHERS.register("discriminant", log_densities="always")
def discriminant_teacher(inputs: TeacherInputs) -> Weighing:
    """An expert counts by how probable its cluster is; the probabilities of the classes are the evidence beside."""
    densities = inputs.log_densities
    return Weighing(gate_weights(densities), lambda: stratum_evidence(densities), of_probabilities=True)


@TEACHERS.register("auto", log_densities="where classes are unknown")
def auto_teacher(inputs: TeacherInputs) -> Weighing:
    """`class_teacher` for samples whose class is known, else `discriminant_teacher`."""
    return discriminant_teacher(inputs) if inputs.labels is None else class_teacher(inputs)


def vote(
    expert_logits: Tensor,
    weighing: Weighing,
    log_priors: Tensor | None = None,
    evidence_weight: float = 0.0,
    scores_strata: bool = True,
) -> Tensor:
    """Return the vote, (samples, classes).

    Parameters
    ----------
    expert_logits : (experts, samples, classes) tensor
    weighing : Weighing
    log_priors : (experts, classes) tensor, optional
        Vote with ``logit_k - log p_k(y)``, p_k the label shares of cluster k: what is left is the evidence in
        the sample, not how common a class is in the cluster (logit adjustment, Menon et al. 2021).
    evidence_weight : float (default: 0.0)
        Of the evidence beside the experts' vote, which has weight 1.
    scores_strata : bool (default: True)
        Whether the outputs are logits of strata. If not, only their weighted mean is voted.
    """
    logits = expert_logits
    if not scores_strata:
        return (weighing.weights * logits).sum(dim=0)
    if log_priors is not None:
        logits = logits - log_priors.unsqueeze(1)
    if weighing.of_probabilities:
        voted = (weighing.weights * torch.softmax(logits, dim=2)).sum(dim=0).clamp(min=LEAST_PROBABILITY).log()
    else:
        voted = (weighing.weights * logits).sum(dim=0)
    return voted if weighing.evidence is None or not evidence_weight else voted + evidence_weight * weighing.evidence()


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
