"""How the experts vote on a proxy sample.

A teacher gives each expert a weight per sample, or per sample and class. The vote is the weighted mean of the
experts' logits, each with its cluster's label prior taken out if that is wished.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disue.registry import Registry
from disue.signature import Signature


@dataclass(frozen=True)
class Evidence:
    """What a teacher may look at.

    Attributes
    ----------
    expert_logits : (experts, samples, classes) tensor
    label_counts : (experts, classes) tensor
        Training examples per class in each expert's cluster.
    features : list of (samples, features) tensor
        For each expert, the proxy samples under the universal expert of its architecture that opened the round.
    prototypes : list of (classes, features) tensor
        For each expert, the mean features per class of its cluster, under the same model and in the same units.
    labels : (samples,) tensor, optional
        The samples' classes, where they are known: on samples that were generated for a class.
    """

    expert_logits: Tensor
    label_counts: Tensor
    features: Sequence[Tensor]
    prototypes: Sequence[Tensor]
    labels: Tensor | None = None


TEACHERS: Registry[Callable[[Evidence], Tensor]] = Registry("teacher")
"""Name -> function from evidence to weights that sum to one over the experts: (experts, samples, classes), or
(experts, samples, 1) for a teacher that weighs all classes of a sample alike."""


@TEACHERS.register("mean")
def mean_weights(evidence: Evidence) -> Tensor:
    """Every expert counts the same (FedDF, Lin et al. 2020, eq. 3)."""
    experts, samples, _ = evidence.expert_logits.shape
    return torch.full((experts, samples, 1), 1.0 / experts)


@TEACHERS.register("class-weighted")
def class_weights(evidence: Evidence) -> Tensor:
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
def confidence_weights(evidence: Evidence) -> Tensor:
    """An expert counts by how sure it is: softmax_k(-H_k(x)), H_k the entropy (nats) of its prediction."""
    log_probabilities = torch.log_softmax(evidence.expert_logits, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1, keepdim=True)
    return torch.softmax(-entropy, dim=0)


@TEACHERS.register("prototype")
def prototype_weights(evidence: Evidence) -> Tensor:
    """An expert counts by how near the sample lies to one of its cluster's class prototypes.

    With d_k(x) the squared distance from x to the nearest prototype of cluster k, the weights are
    softmax_k(-d_k(x) / s), where the scale s is the mean of min_k d_k over the samples.
    """
    experts = len(evidence.prototypes)
    distances = torch.stack(
        [
            torch.cdist(evidence.features[k], evidence.prototypes[k][evidence.label_counts[k] > 0]).min(dim=1).values
            for k in range(experts)
        ]
    ).square()
    scale = distances.min(dim=0).values.mean().clamp(min=1e-12)
    return torch.softmax(-distances / scale, dim=0).unsqueeze(-1)


@TEACHERS.register("auto")
def auto_weights(evidence: Evidence) -> Tensor:
    """`class_weights` for samples whose class is known, else `prototype_weights`."""
    return prototype_weights(evidence) if evidence.labels is None else class_weights(evidence)


def teacher_logits(evidence: Evidence, weights: Tensor, log_priors: Tensor | None = None) -> Tensor:
    """Return the vote, (samples, classes).

    Parameters
    ----------
    evidence : Evidence
    weights : (experts, samples, classes or 1) tensor
    log_priors : (experts, classes) tensor, optional
        Vote with ``logit_k - log p_k(y)``, p_k the label shares of cluster k: what is left is the evidence in
        the sample, not how common a class is in the cluster (logit adjustment, Menon et al. 2021).
    """
    logits = evidence.expert_logits
    if log_priors is not None:
        logits = logits - log_priors.unsqueeze(1)
    return (weights * logits).sum(dim=0)


def estimated_log_priors(expert_logits: Tensor) -> Tensor:
    """Return log label shares, (experts, classes), that nobody told: the mean prediction of each expert.

    ``expert_logits``: (experts, samples, classes), on samples of which each class has an equal part.
    """
    shares = torch.softmax(expert_logits, dim=-1).mean(dim=1)
    return shares.clamp(min=1e-6).log()


@dataclass(frozen=True)
class Lesson:
    """Who taught what in a round.

    Attributes
    ----------
    experts : list of str
        Their labels: cluster numbers, with the architecture where that is not the run's own.
    weights : (experts, samples) tensor
        Each expert's weight in the vote on each proxy sample, for the class that was voted.
    votes : (samples,) tensor
        The class that was voted.
    """

    experts: list[str]
    weights: Tensor
    votes: Tensor

    def by_class(self, num_classes: int) -> tuple[Tensor, Tensor]:
        """Return mean weights, (experts, classes), and how many samples were voted each class, (classes,)."""
        counts = torch.bincount(self.votes, minlength=num_classes)
        sums = torch.zeros(len(self.experts), num_classes).index_add_(1, self.votes, self.weights)
        return sums / counts.clamp(min=1), counts


def lesson(experts: Sequence[str], weights: Tensor, targets: Tensor) -> Lesson:
    """Return who taught what.

    Parameters
    ----------
    experts : list of str
        Their labels, in the order of the weights.
    weights : (experts, samples, classes or 1) tensor
    targets : (samples, classes) tensor
        The vote's logits.
    """
    votes = targets.argmax(dim=1)
    chosen = weights.expand(-1, -1, targets.shape[1])[:, torch.arange(len(votes)), votes]
    return Lesson(list(experts), chosen, votes)


def equal_scales(spaces: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a factor for each feature space, so that the same samples spread in all of them as in the first.

    Then distances can be compared. The spread is the root of the mean squared distance from the mean.

    Parameters
    ----------
    spaces : mapping of architecture to (samples, features) tensor
        The same samples in every space; the spaces may differ in their dimension.
    """
    spreads = {
        model: features.var(dim=0, correction=0).sum().sqrt().clamp(min=1e-12) for model, features in spaces.items()
    }
    first = next(iter(spreads.values()))
    return {model: first / spread for model, spread in spreads.items()}


def merge_prototypes(signatures: Sequence[Signature]) -> tuple[Tensor, Tensor]:
    """Return the label counts, (classes,), and prototypes, (classes, features), of the clients' pooled data."""
    counts = torch.stack([signature.label_counts for signature in signatures])
    weighted = torch.einsum("nc,ncf->cf", counts, torch.stack([signature.prototypes for signature in signatures]))
    totals = counts.sum(dim=0)
    return totals, weighted / totals.clamp(min=1.0).unsqueeze(1)
