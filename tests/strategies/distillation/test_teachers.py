"""Teachers against loops that follow the formulas one number at a time."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from disue.discriminant import LEAST_EVIDENCE, UNKNOWN
from strategies.distillation.teachers import (
    LEAST_SHARE,
    PRIOR_SMOOTHING,
    TEACHERS,
    TeacherInputs,
    Weighing,
    estimated_log_priors,
    log_priors_of,
    vote,
    vote_summary,
)

K, N, C = 3, 7, 4
BY_DENSITY = ("auto", "discriminant")


@pytest.fixture
def evidence() -> TeacherInputs:
    g = torch.Generator().manual_seed(0)
    counts = torch.tensor([[5.0, 0.0, 2.0, 1.0], [0.0, 0.0, 9.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    logits, absent = torch.randn(K, N, C, generator=g), (counts == 0).unsqueeze(1)
    distances = torch.rand(K, N, C, generator=g).masked_fill(absent, torch.inf)
    densities = (-2.0 * torch.rand(K, N, C, generator=g)).masked_fill(absent, UNKNOWN)
    return TeacherInputs(lambda _: logits, counts, lambda: distances, lambda: densities)


def not_looked_at() -> Tensor:
    raise AssertionError("nobody asked for it")


def shares_of(logits: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def brute_gate(evidence: TeacherInputs) -> list[list[float]]:
    nearest = [[min(evidence.distances[k, n].tolist()) for n in range(N)] for k in range(K)]
    weights = [[math.exp(-nearest[k][n]) for n in range(N)] for k in range(K)]
    return [[weights[k][n] / sum(weights[j][n] for j in range(K)) for n in range(N)] for k in range(K)]


def test_prototype_gate_against_a_loop(evidence: TeacherInputs) -> None:
    torch.testing.assert_close(TEACHERS["prototype"](evidence).weights[..., 0], torch.tensor(brute_gate(evidence)))


def test_class_weights_against_a_loop(evidence: TeacherInputs) -> None:
    """Class 1 has examples with one expert only; of a class that nobody has, all know the same."""
    counts = evidence.label_counts.clone()
    counts[:, 3] = 0.0
    weights = TEACHERS["class-weighted"](replace(evidence, label_counts=counts)).weights
    for k in range(K):
        for c in range(C):
            total = sum(float(counts[j, c]) for j in range(K))
            expected = float(counts[k, c]) / total if total else 1.0 / K
            assert weights[k, :, c].tolist() == pytest.approx([expected] * N)
    assert weights[2, 0, 1] == 1.0


def test_of_samples_whose_class_is_known_the_whole_vote_goes_by_that_class(evidence: TeacherInputs) -> None:
    labels = torch.tensor([0, 1, 2, 3, 2, 1, 0])
    weights = TEACHERS["class-weighted"](replace(evidence, labels=labels)).weights
    assert weights.shape == (K, N, 1)
    for n, label in enumerate(labels.tolist()):
        counts = evidence.label_counts[:, label]
        assert weights[:, n, 0].tolist() == pytest.approx((counts / counts.sum()).tolist())


def test_confidence_against_a_loop(evidence: TeacherInputs) -> None:
    weights = TEACHERS["confidence"](evidence).weights
    for n in range(N):
        entropies = []
        for k in range(K):
            shares = shares_of(evidence.expert_logits[k, n].tolist())
            entropies.append(-sum(share * math.log(share) for share in shares))
        scores = [math.exp(-entropy) for entropy in entropies]
        assert weights[:, n, 0].tolist() == pytest.approx([score / sum(scores) for score in scores], rel=1e-5)


def brute_evidence(evidence: TeacherInputs, teacher: str, n: int) -> list[float]:
    """What is said beside the experts: minus the nearest distance, or the log share of the densities of each class."""
    if teacher not in BY_DENSITY:
        return [-min(evidence.distances[:, n, c].tolist()) for c in range(C)]
    likely = [sum(math.exp(value) for value in evidence.log_densities[:, n, c].tolist()) for c in range(C)]
    return [math.log(value / sum(likely)) for value in likely]


@pytest.mark.parametrize("evidence_weight", [0.0, 0.7])
@pytest.mark.parametrize("prior_correction", [True, False])
@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_vote_against_a_loop(
    evidence: TeacherInputs, teacher: str, prior_correction: bool, evidence_weight: float
) -> None:
    weighing = TEACHERS[teacher](evidence)
    assert weighing.of_probabilities is (teacher in BY_DENSITY)
    expected = torch.zeros(N, C)
    for n in range(N):
        beside = brute_evidence(evidence, teacher, n)
        voted = [0.0] * C
        for k in range(K):
            counts, logits = evidence.label_counts[k].tolist(), evidence.expert_logits[k, n].tolist()
            if prior_correction:
                smoothed = [(1 - PRIOR_SMOOTHING) * count / sum(counts) + PRIOR_SMOOTHING / C for count in counts]
                logits = [value - math.log(share) for value, share in zip(logits, smoothed, strict=True)]
            said = shares_of(logits) if weighing.of_probabilities else logits
            for c in range(C):
                voted[c] += float(weighing.weights[k, n, min(c, weighing.weights.shape[2] - 1)]) * said[c]
        for c in range(C):
            own = math.log(voted[c]) if weighing.of_probabilities else voted[c]
            expected[n, c] = own + evidence_weight * beside[c]
    log_priors = log_priors_of(evidence.label_counts) if prior_correction else None
    found = vote(evidence.expert_logits, weighing, log_priors, evidence_weight)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_cluster_counts_by_how_likely_the_sample_is_as_one_of_its_classes(evidence: TeacherInputs) -> None:
    weights = TEACHERS["discriminant"](evidence).weights
    for n in range(N):
        likely = [sum(math.exp(value) for value in evidence.log_densities[k, n].tolist()) for k in range(K)]
        assert weights[:, n, 0].tolist() == pytest.approx([value / sum(likely) for value in likely], rel=1e-5)


def test_no_evidence_against_a_class_is_without_bounds(evidence: TeacherInputs) -> None:
    densities = evidence.log_densities.clone()
    densities[:, 0, 0] -= 1e4
    densities[:, :, 3] = UNKNOWN
    weighing = TEACHERS["discriminant"](replace(evidence, find_log_densities=lambda: densities))
    assert weighing.evidence is not None
    said = weighing.evidence()
    assert float(said[0, 0]) == LEAST_EVIDENCE
    assert said[:, 3].tolist() == [LEAST_EVIDENCE] * N


def test_one_expert_that_is_sure_does_not_outvote_those_that_know_better(evidence: TeacherInputs) -> None:
    """By logits it would: the weight of what it says is without bounds."""
    logits = torch.zeros(K, 1, C)
    logits[0, 0, 0], logits[1:, 0, 1] = 100.0, 5.0
    weights = torch.full((K, 1, 1), 1.0 / K)
    assert int(vote(logits, Weighing(weights)).argmax()) == 0
    assert int(vote(logits, Weighing(weights, of_probabilities=True)).argmax()) == 1


@pytest.mark.parametrize("prior", [True, False])
def test_outputs_that_are_no_logits_of_strata_are_averaged_as_they_are(evidence: TeacherInputs, prior: bool) -> None:
    weighing = TEACHERS["discriminant"](evidence)
    priors = log_priors_of(evidence.label_counts) if prior else None
    found = vote(evidence.expert_logits, weighing, priors, 1.0, scores_strata=False)
    expected = np.einsum("kn,knc->nc", weighing.weights[..., 0].numpy(), evidence.expert_logits.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_unless_told_otherwise_samples_of_a_known_class_go_by_it_and_others_by_their_density(
    evidence: TeacherInputs,
) -> None:
    unseen = replace(evidence, find_distances=not_looked_at)
    assert torch.equal(TEACHERS["auto"](unseen).weights, TEACHERS["discriminant"](evidence).weights)
    labelled = replace(evidence, find_log_densities=not_looked_at, labels=torch.arange(N) % C)
    found, expected = TEACHERS["auto"](labelled), TEACHERS["class-weighted"](labelled)
    assert torch.equal(found.weights, expected.weights)
    assert not found.of_probabilities


@pytest.mark.parametrize("teacher", sorted(TEACHERS))
def test_weights_are_a_distribution_over_the_experts(evidence: TeacherInputs, teacher: str) -> None:
    weights = TEACHERS[teacher](evidence).weights
    assert weights.shape in {(K, N, C), (K, N, 1)}
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(weights.shape[1:]))


def test_the_gate_trusts_the_expert_whose_prototype_is_the_sample(evidence: TeacherInputs) -> None:
    distances = evidence.distances.clone()
    distances[1, 0, 2] = 0.0
    weights = TEACHERS["prototype"](replace(evidence, find_distances=lambda: distances)).weights
    assert int(weights[:, 0, 0].argmax()) == 1


def test_prior_correction_undoes_a_prior() -> None:
    """Experts that differ by their priors alone, up to the smoothing, agree once these are taken out."""
    truth = torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    counts = torch.tensor([[900.0, 50.0, 30.0, 20.0], [1.0, 1.0, 1.0, 97.0]])
    smoothed = (1 - PRIOR_SMOOTHING) * counts / counts.sum(dim=1, keepdim=True) + PRIOR_SMOOTHING / C
    evidence = TeacherInputs(lambda _: truth + smoothed.log().unsqueeze(1), counts, not_looked_at, not_looked_at)
    found = vote(evidence.expert_logits, TEACHERS["mean"](evidence), log_priors_of(counts))
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0.0)


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
    weighing = TEACHERS[teacher](evidence)
    weights, targets = weighing.weights, vote(evidence.expert_logits, weighing)
    told = vote_summary(["7", "0", "3-mlp"], weights, targets.argmax(dim=1))
    mean, counts = told.by_stratum(C)
    assert told.experts == ["7", "0", "3-mlp"]
    for c in range(C):
        voted = [n for n in range(N) if int(targets[n].argmax()) == c]
        assert int(counts[c]) == len(voted)
        for k in range(K):
            each = [float(weights[k, n, min(c, weights.shape[2] - 1)]) for n in voted]
            assert float(mean[k, c]) == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-6)


@pytest.mark.parametrize("per_class", [False, True])
def test_an_expert_that_counts_for_next_to_nothing_is_not_asked_and_the_vote_is_the_same(per_class: bool) -> None:
    g = torch.Generator().manual_seed(3)
    spread = torch.randn(K, 200, C if per_class else 1, generator=g) * 12.0
    weighing = Weighing(torch.softmax(spread, dim=0), of_probabilities=True)
    logits = torch.randn(K, 200, C, generator=g)
    asked = weighing.asked
    for n in range(200):
        for k in range(K):
            shares = [weighing.weights[k, n, c] / weighing.weights[:, n, c].max() for c in range(spread.shape[2])]
            assert bool(asked[k, n]) == any(share >= 0.01 for share in shares)
    assert 0.3 < float(asked.double().mean()) < 0.9
    among = weighing.among(asked)
    torch.testing.assert_close(among.weights.sum(dim=0), torch.ones(200, spread.shape[2]))
    some = vote(torch.where(asked.unsqueeze(2), logits, 0.0), among)
    assert float((some.exp() - vote(logits, weighing).exp()).abs().max()) < K * LEAST_SHARE


def test_nobody_computes_again_what_all_experts_said_of_all_samples() -> None:
    told: list[Tensor | None] = []
    all_of_it = torch.randn(K, N, C)

    def find(asked: Tensor | None) -> Tensor:
        told.append(asked)
        return all_of_it if asked is None else torch.where(asked.unsqueeze(2), all_of_it, 0.0)

    asked = torch.ones(K, N, dtype=torch.bool)
    assert torch.equal(inputs_of(find).logits_of(asked), all_of_it)
    asked[0, 0] = False
    some = inputs_of(find).logits_of(asked)
    assert [own is None for own in told] == [True, False]
    inputs = inputs_of(find)
    TEACHERS["confidence"](inputs)
    assert torch.equal(inputs.logits_of(asked), some)
    assert [own is None for own in told] == [True, False, True], "the teacher had looked at all"


def inputs_of(find: Callable[[Tensor | None], Tensor]) -> TeacherInputs:
    return TeacherInputs(find, torch.ones(K, C), not_looked_at, not_looked_at)


@pytest.mark.parametrize("classes_known", [True, False])
def test_a_teacher_says_whether_it_looks_at_densities(classes_known: bool) -> None:
    """All look as they say."""
    densities: list[Tensor] = []

    def looked_at() -> Tensor:
        densities.append(torch.zeros(K, N, C))
        return densities[-1]

    with TEACHERS.scope():

        @TEACHERS.register("of somebody's own", log_densities="always")
        def own(inputs: TeacherInputs) -> Weighing:
            return Weighing(torch.softmax(inputs.log_densities, dim=0))

        for name in TEACHERS:
            densities.clear()
            labels = torch.zeros(N, dtype=torch.int64) if classes_known else None
            inputs = TeacherInputs(
                lambda asked: torch.zeros(K, N, C), torch.ones(K, C), lambda: torch.ones(K, N, C), looked_at, labels
            )
            TEACHERS[name](inputs)
            assert bool(densities) == TEACHERS.looks_at_densities(name, classes_known), name
