import pytest
import torch

from disue.models import build_model
from disue.optimizers import Adam, clipped, cosine, make_optimizer


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_it_goes_the_way_of_the_optimizer_and_the_schedule_of_that_name(steps: int) -> None:
    ours, theirs = (build_model("lenet", (1, 28, 28), 3) for _ in range(2))
    x, y = torch.randn(8, 1, 28, 28), torch.arange(8) % 3
    optimizer, reference = Adam(ours.parameters()), torch.optim.Adam(theirs.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=steps)
    for learning_rate in cosine(0.01, steps):
        assert learning_rate == reference.param_groups[0]["lr"]
        loss = torch.nn.functional.cross_entropy(ours(x), y)
        optimizer.step(torch.autograd.grad(loss, optimizer.parameters), learning_rate)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), y).backward()
        reference.step()
        schedule.step()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())


def test_it_goes_on_from_a_state_and_leaves_that_alone() -> None:
    start = [torch.nn.Parameter(torch.tensor([1.0, -2.0]))]
    gradients = [torch.tensor([0.5, 3.0])]
    first = Adam(start)
    first.step(gradients, 0.1)
    state = {name: [tensor.clone() for tensor in tensors] for name, tensors in first.state_dict().items()}
    other = [torch.nn.Parameter(start[0].detach().clone())]
    second = Adam(other)
    second.load_state_dict(state)
    for optimizer in (first, second, second):
        optimizer.step(gradients, 0.1)
    third = Adam([torch.nn.Parameter(torch.zeros(2))])
    third.load_state_dict(state)
    assert [tensor.item() for tensor in third.state_dict()["steps"]] == [1.0]
    first.step(gradients, 0.1)
    assert torch.equal(start[0], other[0])


def test_the_state_of_another_model_is_an_error() -> None:
    state = Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    with pytest.raises(ValueError, match="shorter"):
        Adam([torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.8, weight_decay=0.1)),
        ("adam", lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)),
        ("adamw", lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)),
    ],
)
def test_each_goes_the_way_of_the_optimizer_of_its_name_and_clips_as_pytorch_does(name, reference) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = (build_model("cnn", (1, 8, 8), 3) for _ in range(2))
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    optimizer, other = make_optimizer(name, ours.parameters(), 0.8, 0.1), reference(theirs.parameters())
    for _ in range(5):
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(ours(x), y), list(ours.parameters()))
        optimizer.step(clipped(gradients, 0.5), 0.01)
        other.zero_grad()
        torch.nn.functional.cross_entropy(theirs(x), y).backward()
        assert float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)) > 0.5, "there is something to clip"
        other.step()
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)


def test_short_gradients_are_as_they_are() -> None:
    gradients = [torch.tensor([0.3, 0.4]), torch.tensor([[0.0]])]
    assert all(torch.equal(*pair) for pair in zip(clipped(gradients, 0.6), gradients, strict=True))
