"""Teachers against loops that follow the formulas one number at a time."""

import math
from dataclasses import replace

import pytest
import torch

from strategies.distillation.teachers import (
    PRIOR_SMOOTHING,
    TEACHERS,
    TeacherInputs,
    estimated_log_priors,
    log_priors_of,
    teacher_logits,
    vote_summary,
)

K, N, C = 3, 7, 4


@pytest.fixture
def evidence() -> TeacherInputs:
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([[5.0, 0.0, 2.0, 1.0], [0.0, 0.0, 9.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    return TeacherInputs(
        expert_logits=torch.randn(K, N, C, generator=g),
        label_counts=counts,
        distances=torch.rand(K, N, C, generator=g).masked_fill((counts == 0).unsqueeze(1), torch.inf),
    )


def brute_gate(evidence: TeacherInputs) -> list[list[float]]:
    nearest = [[min(evidence.distances[k, n].tolist()) for n in range(N)] for k in range(K)]
    weights = [[math.exp(-nearest[k][n]) for n in range(N)] for k in range(K)]
    return [[weights[k][n] / sum(weights[j][n] for j in range(K)) for n in range(N)] for k in range(K)]


def test_prototype_gate_against_a_loop(evidence: TeacherInputs) -> None:
    torch.testing.assert_close(TEACHERS["prototype"](evidence)[..., 0], torch.tensor(brute_gate(evidence)))


def test_class_weights_against_a_loop(evidence: TeacherInputs) -> None:
    """Class 1 has examples with one expert only; of a class that nobody has, all know the same."""
    counts = evidence.label_counts.clone()
    counts[:, 3] = 0.0
    weights = TEACHERS["class-weighted"](replace(evidence, label_counts=counts))
    for k in range(K):
        for c in range(C):
            total = sum(float(counts[j, c]) for j in range(K))
            expected = float(counts[k, c]) / total if total else 1.0 / K
            assert weights[k, :, c].tolist() == pytest.approx([expected] * N)
    assert weights[2, 0, 1] == 1.0


def test_of_samples_whose_class_is_known_the_whole_vote_goes_by_that_class(evidence: TeacherInputs) -> None:
    labels = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    weights = TEACHERS["class-weighted"](replace(evidence, labels=labels))
    assert weights.shape == (K, N, 1)
    for n, label in enumerate(labels.tolist()):
        counts = evidence.label_counts[:, label]
        assert weights[:, n, 0].tolist() == pytest.approx((counts / counts.sum()).tolist())


def test_confidence_against_a_loop(evidence: TeacherInputs) -> None:
    weights = TEACHERS["confidence"](evidence)
    for n in range(N):
        entropies = []
        for k in range(K):
            exponentials = [math.exp(float(value)) for value in evidence.expert_logits[k, n]]
            shares = [value / sum(exponentials) for value in exponentials]
            entropies.append(-sum(share * math.log(share) for share in shares))
        scores = [math.exp(-entropy) for entropy in entropies]
        assert weights[:, n, 0].tolist() == pytest.approx([score / sum(scores) for score in scores], rel=1e-5)


@pytest.mark.parametrize("prototype_weight", [0.0, 0.7])
@pytest.mark.parametrize("prior_correction", [True, False])
@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_vote_against_a_loop(
    evidence: TeacherInputs, teacher: str, prior_correction: bool, prototype_weight: float
) -> None:
    weights = TEACHERS[teacher](evidence)
    expected = torch.zeros(N, C)
    for n in range(N):
        for c in range(C):
            expected[n, c] -= prototype_weight * min(evidence.distances[:, n, c].tolist())
            for k in range(K):
                counts = evidence.label_counts[k].tolist()
                share = (1 - PRIOR_SMOOTHING) * counts[c] / sum(counts) + PRIOR_SMOOTHING / C
                prior = math.log(share) if prior_correction else 0.0
                weight = float(weights[k, n, min(c, weights.shape[2] - 1)])
                expected[n, c] += weight * (float(evidence.expert_logits[k, n, c]) - prior)
    log_priors = log_priors_of(evidence.label_counts) if prior_correction else None
    torch.testing.assert_close(teacher_logits(evidence, weights, log_priors, prototype_weight), expected)


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_weights_are_a_distribution_over_the_experts(evidence: TeacherInputs, teacher: str) -> None:
    weights = TEACHERS[teacher](evidence)
    assert weights.shape in {(K, N, C), (K, N, 1)}
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(weights.shape[1:]))


def test_the_gate_trusts_the_expert_whose_prototype_is_the_sample(evidence: TeacherInputs) -> None:
    distances = evidence.distances.clone()
    distances[1, 0, 2] = 0.0
    assert int(TEACHERS["prototype"](replace(evidence, distances=distances))[:, 0, 0].argmax()) == 1


def test_prior_correction_undoes_a_prior() -> None:
    """Experts that differ by their priors alone, up to the smoothing, agree once these are taken out."""
    truth = torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([[900.0, 50.0, 30.0, 20.0], [1.0, 1.0, 1.0, 97.0]])
    smoothed = (1 - PRIOR_SMOOTHING) * counts / counts.sum(dim=1, keepdim=True) + PRIOR_SMOOTHING / C
    evidence = TeacherInputs(truth + smoothed.log().unsqueeze(1), counts, torch.zeros(2, N, C))
    vote = teacher_logits(evidence, TEACHERS["mean"](evidence), log_priors_of(counts))
    torch.testing.assert_close(vote, truth, atol=1e-5, rtol=0.0)


def test_the_estimated_prior_against_a_loop(evidence: TeacherInputs) -> None:
    found = estimated_log_priors(evidence.expert_logits)
    for k in range(K):
        means = [0.0] * C
        for n in range(N):
            exponentials = [math.exp(float(value)) for value in evidence.expert_logits[k, n]]
            for c in range(C):
                means[c] += exponentials[c] / sum(exponentials) / N
        smoothed = [(1 - PRIOR_SMOOTHING) * value + PRIOR_SMOOTHING / C for value in means]
        assert found[k].tolist() == pytest.approx([math.log(value) for value in smoothed], rel=1e-5)


def test_the_estimated_prior_is_the_prior_of_an_expert_that_sees_only_noise() -> None:
    """A calibrated expert predicts its prior on the mean; one who sees nothing predicts it always."""
    prior = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    logits = prior.log().unsqueeze(1).expand(2, 50, 3)
    smoothed = (1 - PRIOR_SMOOTHING) * prior + PRIOR_SMOOTHING / 3
    torch.testing.assert_close(estimated_log_priors(logits).exp(), smoothed)


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_who_taught_what_against_a_loop(evidence: TeacherInputs, teacher: str) -> None:
    weights = TEACHERS[teacher](evidence)
    targets = teacher_logits(evidence, weights)
    told = vote_summary(["7", "0", "3-mlp"], weights, targets.argmax(dim=1))
    mean, counts = told.by_stratum(C)
    assert told.experts == ["7", "0", "3-mlp"]
    for c in range(C):
        voted = [n for n in range(N) if int(targets[n].argmax()) == c]
        assert int(counts[c]) == len(voted)
        for k in range(K):
            each = [float(weights[k, n, min(c, weights.shape[2] - 1)]) for n in voted]
            assert float(mean[k, c]) == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-6)
