import pytest
import torch
from tests_support import numbered_classes
from torch import nn
from torch.nn import functional as F

from disue.device import mixed_precision
from disue.metrics import predict_logits
from disue.models import Classifier, build_model, get_state
from disue.tasks import Regression
from strategies.distillation.distiller import Distilled, Distiller
from strategies.distillation.teachers import Weighing, vote

CPU = torch.device("cpu")
TASK = numbered_classes(3)


def problem(seed: int = 0) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    student = build_model("mlp", (1, 4, 4), 3)
    teacher = build_model("mlp", (1, 4, 4), 3, seed=9)
    x = torch.randn(200, 1, 4, 4, generator=g)
    return student, x, 5.0 * predict_logits(teacher, x, CPU)


def distil(distiller: Distiller, seed: int = 0) -> Distilled:
    student, x, targets = problem()
    return distiller.distil(TASK, student, x, targets, torch.Generator().manual_seed(seed), CPU)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_student_learns_the_vote(temperature: float) -> None:
    result = distil(Distiller(steps=100, temperature=temperature))
    assert not result.kept_average
    assert result.student_loss < 0.5 * result.average_loss
    assert result.steps == 100


def test_what_is_held_out_is_so_in_all_its_views() -> None:
    """Views are told from each other by what stands in their first pixel: which sample, and which view, it is."""
    student, x, targets = problem()
    x[:, 0, 0, 0] = torch.arange(200.0) / 200.0
    views = torch.cat([x, x + 10.0, x + 20.0])
    seen: list[torch.Tensor] = []
    student.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0][:, 0, 0, 0]) if student.training else None
    )
    distiller, generator = Distiller(steps=30, check_every=30), torch.Generator().manual_seed(0)
    result = distiller.distil(TASK, student, views, targets.repeat(3, 1), generator, CPU, views=2)
    held_out = x[torch.randperm(200, generator=torch.Generator().manual_seed(0))[:40], 0, 0, 0]
    assert result.steps == 30
    first = torch.cat(seen)
    assert set((first // 10.0).tolist()) == {0.0, 1.0, 2.0}
    assert not torch.isclose((first % 10.0).unsqueeze(1), held_out, atol=1e-3).any()
    average = problem()[0]
    p, q = (F.softmax(own, dim=1) for own in (targets, predict_logits(average, x, CPU)))
    there = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:40]
    by_hand = (p * (p.log() - q.log())).sum(dim=1)[there].mean()
    assert result.average_loss == pytest.approx(float(by_hand), rel=1e-4), "of the samples themselves"


def test_the_divergence_is_the_one_on_samples_that_were_held_out() -> None:
    student, x, targets = problem()
    result = distil(Distiller(steps=40, temperature=2.0))
    held_out = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:40]
    student.load_state_dict(result.state)
    p = F.softmax(targets[held_out] / 2.0, dim=1)
    q = F.softmax(predict_logits(student, x[held_out], CPU) / 2.0, dim=1)
    by_hand = 4.0 * (p * (p.log() - q.log())).sum(dim=1).mean()
    assert result.student_loss == pytest.approx(float(by_hand), rel=1e-4)


def test_the_guard_keeps_the_average_when_the_student_is_not_better() -> None:
    before = get_state(problem()[0])
    result = distil(Distiller(steps=60, learning_rate=30.0))  # such steps only do harm
    assert result.kept_average
    assert result.student_loss == result.average_loss
    for name, tensor in result.state.items():
        assert torch.equal(tensor, before[name])


def test_the_guard_keeps_the_average_when_the_teacher_is_not_a_number() -> None:
    student, x, targets = problem()
    result = Distiller(steps=20).distil(TASK, student, x, targets * float("nan"), torch.Generator().manual_seed(0), CPU)
    assert result.kept_average
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.state.values())


def test_it_stops_early_when_nothing_improves() -> None:
    result = distil(Distiller(steps=1000, learning_rate=30.0, check_every=10, patience=2))
    assert result.steps == 20


def test_no_steps_is_the_average() -> None:
    result = distil(Distiller(steps=0))
    assert result.kept_average
    assert result.steps == 0


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    first, again, other = (distil(Distiller(steps=20), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    assert not all(torch.equal(first.state[name], other.state[name]) for name in first.state)


def test_the_result_lies_between_average_and_student() -> None:
    average, student = get_state(problem()[0]), distil(Distiller(steps=40)).state
    mixed = distil(Distiller(steps=40, student_share=0.25)).state
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * average[name] + 0.25 * student[name])


def test_the_guard_believes_other_evidence_than_the_teacher() -> None:
    """The student learns the vote well; what the guard believes in is what the average says, so that is kept."""
    student, x, targets = problem()
    believed = predict_logits(student, x, CPU).argmax(dim=1)
    before = get_state(student)
    result = Distiller(steps=60).distil(TASK, student, x, targets, torch.Generator().manual_seed(0), CPU, believed)
    assert result.student_loss < result.average_loss
    assert result.kept_average
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.state.items())


def test_the_evidence_against_a_count() -> None:
    student, x, targets = problem()
    believed = torch.arange(len(x)) % 3
    held_out = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:40].tolist()
    before = predict_logits(student, x, CPU).argmax(dim=1).tolist()
    result = Distiller(steps=40, student_share=0.5).distil(
        TASK, student, x, targets, torch.Generator().manual_seed(0), CPU, believed
    )
    assert result.average_evidence == pytest.approx(sum(before[i] == int(believed[i]) for i in held_out) / 40)
    if not result.kept_average:
        student.load_state_dict(result.state)
        after = predict_logits(student, x, CPU).argmax(dim=1).tolist()
        assert result.result_evidence == pytest.approx(sum(after[i] == int(believed[i]) for i in held_out) / 40)
    assert result.kept_average == (result.result_evidence < result.average_evidence)


def test_a_cpu_computes_in_full_precision() -> None:
    with mixed_precision(CPU):
        assert problem()[0](problem()[1]).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_student_learns_as_much_in_mixed_precision() -> None:
    student, x, targets = problem()
    device = torch.device("cuda")
    with mixed_precision(device):
        assert student.to(device)(x.to(device)).dtype == torch.bfloat16
    on_gpu = Distiller(steps=100).distil(TASK, student, x, targets, torch.Generator().manual_seed(0), device)
    assert on_gpu.student_loss == pytest.approx(distil(Distiller(steps=100)).student_loss, rel=0.1)


def test_of_quantities_the_student_learns_the_mean_of_two_linear_experts() -> None:
    """Of equal parts of two linear functions the mean is linear, with the mean of their coefficients."""
    task = Regression(("a", "b"), (6,), (0.0,) * 6, (1.0,) * 6, (0.0,) * 2, (1.0,) * 2)
    g = torch.Generator().manual_seed(0)
    first, second = (Classifier(nn.Identity(), 6, 2) for _ in range(2))
    student, x = Classifier(nn.Identity(), 6, 2), torch.randn(300, 6, generator=g)
    outputs = torch.stack([predict_logits(expert, x, CPU) for expert in (first, second)])
    targets = vote(outputs, Weighing(torch.full((2, 300, 1), 0.5)), scores_strata=False)
    distiller = Distiller(steps=600, learning_rate=0.02, temperature=3.0)
    result = distiller.distil(task, student, x, targets, torch.Generator().manual_seed(0), CPU)
    assert not result.kept_average
    assert result.student_loss < 1e-4 < result.average_loss
    assert result.average_evidence == result.result_evidence == 1.0
    for name in ("head.weight", "head.bias"):
        mean = (first.state_dict()[name] + second.state_dict()[name]) / 2.0
        torch.testing.assert_close(result.state[name], mean, atol=0.02, rtol=0.0)


def test_of_quantities_the_divergence_is_the_mean_squared_difference() -> None:
    task = Regression(("a", "b"), (6,), (0.0,) * 6, (1.0,) * 6, (0.0,) * 2, (1.0,) * 2)
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert float(task.divergence(first, second, 7.0)) == pytest.approx((4.0 + 9.0) / 4)
