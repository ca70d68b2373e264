import pytest
import torch
from torch import nn

from disue.errors import ConfigError
from disue.models import MODELS, build_model, fill, filled_model, get_state, interpolate, same_model, subtract

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_takes_every_shape_and_learns(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, shape, 7)
    x, y = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    assert model.body(x).shape == (4, model.head.in_features)
    before = nn.functional.cross_entropy(model(x), y)
    before.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad
    assert nn.functional.cross_entropy(model(x), y).item() < before.item()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_model_keeps_running_statistics(name: str) -> None:
    model = build_model(name, (3, 32, 32), 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert set(dict(model.named_parameters())) == set(model.state_dict())


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = get_state(build_model("cnn", (1, 8, 8), 10, seed=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = get_state(build_model("cnn", (1, 8, 8), 10, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    other = get_state(build_model("cnn", (1, 8, 8), 10, seed=4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_model_is_built_without_a_change_of_any_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of GPUs are seeded by `torch.manual_seed`, and no fork of the CPU's gives them back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    build_model("mlp", (1, 8, 8), 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeded


def test_state_arithmetic() -> None:
    first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    assert subtract(first, second)["w"].tolist() == [-2.0, 2.0]
    assert interpolate(first, second, 0.25)["w"].tolist() == [1.5, 1.5]


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match="model: 'resnet' does not exist"):
        build_model("resnet", (3, 32, 32), 10)


def test_lenet_has_its_parameters_and_no_padding_at_its_own_size() -> None:
    model = build_model("lenet", (1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_426
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.body[0](x), x)
    assert torch.equal(model.body[7](model.body[:7](x)), model.body[:7](x))


def test_mlp_200_has_one_hidden_layer() -> None:
    state = get_state(build_model("mlp-200", (1, 28, 28), 10))
    assert [tuple(tensor.shape) for tensor in state.values()] == [(200, 784), (200,), (10, 200), (10,)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_filled_model_has_the_given_parameters_and_learns(name: str) -> None:
    state = get_state(build_model(name, (1, 28, 28), 10, seed=5))
    generator = torch.get_rng_state()
    model = filled_model(name, (1, 28, 28), 10, state, seed=0)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert same_model(get_state(model), state)


def test_a_model_takes_a_copy_of_a_state() -> None:
    model, state = build_model("cnn", (1, 8, 8), 10), get_state(build_model("cnn", (1, 8, 8), 10, seed=5))
    tensors = list(model.parameters())
    fill(model, dict(reversed(state.items())))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(one is other for one, other in zip(model.parameters(), tensors, strict=True))
    fill(model, {key: tensor + 1 for key, tensor in state.items()})
    assert torch.equal(state["head.bias"], get_state(build_model("cnn", (1, 8, 8), 10, seed=5))["head.bias"])


def test_a_model_of_other_parameters_is_an_error() -> None:
    state = get_state(build_model("mlp", (1, 8, 8), 10))
    half = {key: tensor.half() for key, tensor in state.items()}
    for classes, own in ((7, state), (10, {"head.weight": state["head.weight"]}), (10, half)):
        with pytest.raises(ValueError, match="not those of model 'mlp'"):
            filled_model("mlp", (1, 8, 8), classes, own, seed=0)
        with pytest.raises(ValueError, match="not the parameters of such a Classifier"):
            fill(build_model("mlp", (1, 8, 8), classes), own)
