"""Teachers against loops that follow the formulas one number at a time."""

import math
from dataclasses import replace

import pytest
import torch

from disue.metrics import PRIOR_PSEUDO_COUNT, log_prior
from disue.signature import Signature
from strategies.teachers import (
    TEACHERS,
    Evidence,
    equal_scales,
    estimated_log_priors,
    lesson,
    merge_prototypes,
    teacher_logits,
)

K, N, C, F = 3, 7, 4, 5


@pytest.fixture
def evidence() -> Evidence:
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([[5.0, 0.0, 2.0, 1.0], [0.0, 0.0, 9.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    return Evidence(
        expert_logits=torch.randn(K, N, C, generator=g),
        label_counts=counts,
        features=[torch.randn(N, F, generator=g)] * K,
        prototypes=list(torch.randn(K, C, F, generator=g) * (counts > 0).unsqueeze(-1)),
    )


def brute_gate(evidence: Evidence) -> list[list[float]]:
    nearest = [[0.0] * N for _ in range(K)]
    for k in range(K):
        for n in range(N):
            squared = [
                sum(
                    (float(evidence.features[k][n, f]) - float(evidence.prototypes[k][c, f])) ** 2
                    for f in range(evidence.features[k].shape[1])
                )
                for c in range(C)
                if evidence.label_counts[k, c] > 0
            ]
            nearest[k][n] = min(squared)
    scale = sum(min(nearest[k][n] for k in range(K)) for n in range(N)) / N
    weights = [[math.exp(-nearest[k][n] / scale) for n in range(N)] for k in range(K)]
    return [[weights[k][n] / sum(weights[j][n] for j in range(K)) for n in range(N)] for k in range(K)]


def test_prototype_gate_against_a_loop(evidence: Evidence) -> None:
    torch.testing.assert_close(TEACHERS["prototype"](evidence)[..., 0], torch.tensor(brute_gate(evidence)))


def test_class_weights_against_a_loop(evidence: Evidence) -> None:
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


def test_of_samples_whose_class_is_known_the_whole_vote_goes_by_that_class(evidence: Evidence) -> None:
    labels = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    weights = TEACHERS["class-weighted"](replace(evidence, labels=labels))
    assert weights.shape == (K, N, 1)
    for n, label in enumerate(labels.tolist()):
        counts = evidence.label_counts[:, label]
        assert weights[:, n, 0].tolist() == pytest.approx((counts / counts.sum()).tolist())


def test_confidence_against_a_loop(evidence: Evidence) -> None:
    weights = TEACHERS["confidence"](evidence)
    for n in range(N):
        entropies = []
        for k in range(K):
            exponentials = [math.exp(float(value)) for value in evidence.expert_logits[k, n]]
            shares = [value / sum(exponentials) for value in exponentials]
            entropies.append(-sum(share * math.log(share) for share in shares))
        scores = [math.exp(-entropy) for entropy in entropies]
        assert weights[:, n, 0].tolist() == pytest.approx([score / sum(scores) for score in scores], rel=1e-5)


@pytest.mark.parametrize("prior_correction", [True, False])
@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_vote_against_a_loop(evidence: Evidence, teacher: str, prior_correction: bool) -> None:
    weights = TEACHERS[teacher](evidence)
    expected = torch.zeros(N, C)
    for n in range(N):
        for c in range(C):
            for k in range(K):
                counts = [float(value) + PRIOR_PSEUDO_COUNT for value in evidence.label_counts[k]]
                prior = math.log(counts[c] / sum(counts)) if prior_correction else 0.0
                weight = float(weights[k, n, min(c, weights.shape[2] - 1)])
                expected[n, c] += weight * (float(evidence.expert_logits[k, n, c]) - prior)
    log_priors = log_prior(evidence.label_counts) if prior_correction else None
    torch.testing.assert_close(teacher_logits(evidence, weights, log_priors), expected)


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_weights_are_a_distribution_over_the_experts(evidence: Evidence, teacher: str) -> None:
    weights = TEACHERS[teacher](evidence)
    assert weights.shape in {(K, N, C), (K, N, 1)}
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(weights.shape[1:]))


def test_the_gate_trusts_the_expert_whose_prototype_is_the_sample(evidence: Evidence) -> None:
    features = evidence.features[0].clone()
    features[0] = evidence.prototypes[1][2]
    near = replace(evidence, features=[features] * K)
    assert int(TEACHERS["prototype"](near)[:, 0, 0].argmax()) == 1


def test_the_gate_compares_experts_in_feature_spaces_of_their_own(evidence: Evidence) -> None:
    g = torch.Generator().manual_seed(3)
    wide = replace(
        evidence,
        features=[*evidence.features[:2], torch.randn(N, 2 * F, generator=g)],
        prototypes=[*evidence.prototypes[:2], torch.randn(C, 2 * F, generator=g)],
    )
    torch.testing.assert_close(TEACHERS["prototype"](wide)[..., 0], torch.tensor(brute_gate(wide)))


def test_equal_scales_against_a_loop_and_one_space_is_left_as_it_is() -> None:
    g = torch.Generator().manual_seed(4)
    spaces = {"cnn": torch.randn(N, F, generator=g), "mlp": 30.0 + 7.0 * torch.randn(N, 2 * F, generator=g)}
    scales = equal_scales(spaces)
    spreads = []
    for model, space in spaces.items():
        scaled = (space * scales[model]).tolist()
        middle = [sum(row[f] for row in scaled) / N for f in range(len(scaled[0]))]
        spreads.append(sum((a - b) ** 2 for row in scaled for a, b in zip(row, middle, strict=True)) / N)
    assert spreads[1] == pytest.approx(spreads[0], rel=1e-4)
    assert float(scales["cnn"]) == 1.0
    assert bool(torch.isfinite(equal_scales(spaces | {"dead": torch.zeros(N, F)})["dead"]))


def test_an_absent_class_has_no_prototype(evidence: Evidence) -> None:
    at_zero = replace(evidence, features=[torch.zeros(N, F)] * K)  # the zeros of absent classes would be nearest
    torch.testing.assert_close(TEACHERS["prototype"](at_zero)[..., 0], torch.tensor(brute_gate(at_zero)))


def test_prior_correction_undoes_a_prior() -> None:
    """Experts that differ by their priors alone agree once these are taken out."""
    truth = torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([[900.0, 50.0, 30.0, 20.0], [1.0, 1.0, 1.0, 97.0]])
    priors = torch.log((counts + PRIOR_PSEUDO_COUNT) / (counts + PRIOR_PSEUDO_COUNT).sum(dim=1, keepdim=True))
    evidence = Evidence(truth + priors.unsqueeze(1), counts, [torch.zeros(N, F)] * 2, [torch.zeros(C, F)] * 2)
    vote = teacher_logits(evidence, TEACHERS["mean"](evidence), log_prior(counts))
    torch.testing.assert_close(vote, truth, atol=1e-5, rtol=0.0)


def test_the_estimated_prior_against_a_loop(evidence: Evidence) -> None:
    found = estimated_log_priors(evidence.expert_logits)
    for k in range(K):
        means = [0.0] * C
        for n in range(N):
            exponentials = [math.exp(float(value)) for value in evidence.expert_logits[k, n]]
            for c in range(C):
                means[c] += exponentials[c] / sum(exponentials) / N
        assert found[k].tolist() == pytest.approx([math.log(value) for value in means], rel=1e-5)


def test_the_estimated_prior_is_the_prior_of_an_expert_that_sees_only_noise() -> None:
    """A calibrated expert predicts its prior on the mean; one who sees nothing predicts it always."""
    prior = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    logits = prior.log().unsqueeze(1).expand(2, 50, 3)
    torch.testing.assert_close(estimated_log_priors(logits).exp(), prior)


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_who_taught_what_against_a_loop(evidence: Evidence, teacher: str) -> None:
    weights = TEACHERS[teacher](evidence)
    targets = teacher_logits(evidence, weights)
    told = lesson(["7", "0", "3-mlp"], weights, targets)
    mean, counts = told.by_class(C)
    assert told.experts == ["7", "0", "3-mlp"]
    for c in range(C):
        voted = [n for n in range(N) if int(targets[n].argmax()) == c]
        assert int(counts[c]) == len(voted)
        for k in range(K):
            each = [float(weights[k, n, min(c, weights.shape[2] - 1)]) for n in voted]
            assert float(mean[k, c]) == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-6)


def test_prototypes_of_a_cluster_are_those_of_its_pooled_data() -> None:
    g = torch.Generator().manual_seed(2)
    data = [(torch.randn(n, F, generator=g), torch.randint(0, C - 1, (n,), generator=g)) for n in (4, 9, 1)]

    def summarise(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.bincount(y, minlength=C).float()
        means = torch.stack([x[y == c].mean(dim=0) if (y == c).any() else torch.zeros(F) for c in range(C)])
        return counts, means

    summaries = [summarise(x, y) for x, y in data]
    merged = merge_prototypes([Signature(c, p) for c, p in summaries])
    pooled = summarise(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
    torch.testing.assert_close(merged[0], pooled[0])
    torch.testing.assert_close(merged[1], pooled[1])
