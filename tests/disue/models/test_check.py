"""Models that a person registers: what cannot work is refused before the first round, and what can works to the end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from disue.config import ClientConfig
from disue.data import build_federation
from disue.errors import ConfigError, DataError
from disue.models import MODELS, Classifier, Shape, build_model, filled_model, get_state
from disue.models.check import check_networks
from disue.runs.reading import load_run

SHAPE, CLASSES = (1, 8, 8), 10
Build = Callable[[Shape, int], nn.Module]


def of(*layers: nn.Module, outputs: int = CLASSES) -> Classifier:
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *layers), 8, outputs)


def changed(change: Callable[[Classifier], object]) -> Build:
    def build(_shape: Shape, _classes: int) -> Classifier:
        model = of()
        change(model)
        return model

    return build


class Other(nn.Module):
    """A head by another name."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True))
        self.classifier = head or nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x))  # type: ignore[no-any-return]


class Scaled(Other):
    """What is returned is computed from logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2.0


class Two(Other):
    """Two outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), super().forward(x)  # type: ignore[return-value]


class Twice(nn.Sequential):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self[0](self[0](x.flatten(1)))  # type: ignore[no-any-return]


class Answer(Other):
    """Logits are an attribute of what is returned."""

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


class Adapted(nn.Module):
    """A frozen layer beside one of low rank that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 2, bias=False), nn.Linear(2, 64, bias=False)
        self.norm = nn.BatchNorm1d(64).requires_grad_(False)
        self.last = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(self.norm(self.frozen(x) + self.up(self.down(x))))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


class Detached(Classifier):
    """Without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Centred(nn.Module):
    """Features less their mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Constant(nn.Module):
    """A constant that is no parameter; ``kept``: with the parameters."""

    def __init__(self, kept: bool = False) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=kept)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Hidden(nn.Module):
    """A drawn tensor that nobody is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor(self.offset.tolist())


class Unused(nn.Module):
    """A parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Everything(Answer):
    """Constants, hidden ones too, tied layers, statistics, a head without bias, and logits as an attribute."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, CLASSES, bias=False))
        self.hidden.extend([Constant(kept=True), Hidden(), Tied(), nn.BatchNorm1d(8)])


def raises(_shape: Shape, _classes: int) -> Classifier:
    raise RuntimeError("no such\nlayer")


numbers = iter(range(1000))
BAD: dict[str, tuple[Build, str]] = {
    "of a batch": (
        lambda *_: of(nn.BatchNorm1d(8, track_running_stats=False)),
        "(ValueError: Expected more than 1 value",
    ),
    "of the batch": (lambda *_: of(Centred()), "by the others of its batch, not only in training; use GroupNorm"),
    "frozen head": (
        changed(lambda m: m.head.weight.requires_grad_(False)),
        "'head.weight' with requires_grad=False; the last layer must be trained",
    ),
    "double": (changed(lambda m: m.head.double()), "the parameter 'head.weight' of type torch.float64"),
    "half": (changed(lambda m: m.half()), "the parameter 'body.1.weight' of type torch.float16"),
    "tied head": (
        changed(lambda m: m.body.append(nn.Linear(8, 10)) and setattr(m.body[2], "weight", m.head.weight)),
        "the weight of its last layer under the name 'body.2.weight', too",
    ),
    "lazy": (
        lambda *_: Classifier(nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), 8, CLASSES),
        "whose shape is not known",
    ),
    "outside": (changed(lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1)))), "'scale' outside of"),
    "not finite": (changed(lambda m: nn.init.constant_(m.head.bias, torch.inf)), "'head.bias' with initial values"),
    "softmax": (
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.Softmax(dim=1)),
        "ends in a Softmax ('2'); return logits, as a torch.nn.Linear gives them",
    ),
    "dropout of logits": (
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.Dropout(0.5)),
        "ends in a Dropout ('2')",
    ),
    "relu in place": (
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.ReLU(inplace=True)),
        "ends in a ReLU ('2')",
    ),
    "temperature": (lambda *_: Scaled(), "computes on what its last layer gives; return the outputs of a torch.nn"),
    "two heads": (lambda *_: Two(), "returns a tuple; return one tensor, or what has it as `logits`"),
    "twice": (lambda *_: Twice(), "calls its last layer '0' more than once"),
    "unflattened": (lambda *_: nn.Linear(64, CLASSES), "cannot be built for inputs 1x8x8 and 10 outputs (RuntimeError"),
    "conv head": (changed(lambda m: setattr(m, "head", nn.Conv2d(8, 10, 1))), "has a head that is a Conv2d"),
    "wide": (lambda *_: of(outputs=7), "has a head of 7 outputs; the task has 10"),
    "narrow": (lambda *_: of(nn.Linear(8, 5)), "(RuntimeError: "),
    "flat": (
        lambda *_: Classifier(nn.Linear(8, 8), 8, CLASSES),
        "gives outputs 3x1x8x10 for 3 inputs; 3x10 is expected",
    ),
    "no gradient": (
        lambda *_: Detached(nn.Flatten(), 64, CLASSES),
        "cannot be trained on inputs 1x8x8 (RuntimeError: ",
    ),
    "raises": (raises, "cannot be built for inputs 1x8x8 and 10 outputs (RuntimeError: no such layer)"),
    "no module": (lambda *_: "a text", "is a str; build a torch.nn.Module"),  # type: ignore[return-value, dict-item]
    "other weights": (changed(lambda m: nn.init.constant_(m.head.bias, next(numbers))), "from other weights each time"),
}
GOOD: dict[str, Build] = {
    "constant": lambda *_: of(Constant()),
    "kept-constant": lambda *_: of(Constant(kept=True)),
    "hidden": lambda *_: of(Hidden()),
    "dropout": lambda *_: of(nn.Dropout(0.5)),
    "unused": lambda *_: of(Unused()),
    "layer-norm": lambda *_: of(nn.LayerNorm(8)),
    "weight.norm": lambda *_: of(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "batch-norm": lambda *_: of(nn.BatchNorm1d(8), nn.ReLU()),
    "tied": lambda *_: of(Tied()),
    "other-head": lambda *_: Other(),
    "no-bias": lambda *_: Other(nn.Linear(8, CLASSES, bias=False)),
    "logits": lambda *_: Answer(),
    "adapted": lambda *_: Adapted(),
    "everything": lambda *_: Everything(),
    "sequence": lambda *_: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
    ),
}


@pytest.fixture
def register() -> Iterator[Callable[[str, Build], object]]:
    """Register a model until the end of the test."""
    with MODELS.scope():
        yield lambda name, build: MODELS.register(name)(build)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_work_is_one_line_that_names_the_model_and_the_part(register, kind: str) -> None:  # type: ignore[no-untyped-def]
    build, words = BAD[kind]
    register("mine", build)
    with pytest.raises(ConfigError) as caught:
        check_networks(["mlp", "mine"], SHAPE, CLASSES)
    assert str(caught.value).startswith("model: 'mine' ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "two words", "a,b", "-x"])
def test_a_name_that_can_be_no_name_of_a_file_is_refused(register, name: str) -> None:  # type: ignore[no-untyped-def]
    register(name, lambda *_: of())
    with pytest.raises(ConfigError, match="cannot be called so"):
        check_networks([name], SHAPE, CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_the_models_that_there_are_can_work(name: str) -> None:
    check_networks([name], SHAPE, CLASSES)


@pytest.mark.parametrize("kind", ["softmax", "frozen head", "wide"])
@pytest.mark.parametrize("others", [{}, {"client_models": "mlp,mine"}])
def test_it_is_refused_before_the_first_round(register, run, tmp_path: Path, kind: str, others: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    register("mine", BAD[kind][0])
    with pytest.raises(ConfigError, match="model: 'mine' (has|ends in) "):
        run(clients=4, model="mine" if not others else "mlp", **others)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", GOOD)
def test_what_can_work_is_taken_and_read_again_as_it_was(register, name: str) -> None:  # type: ignore[no-untyped-def]
    register(name, GOOD[name])
    check_networks([name], SHAPE, CLASSES)
    model = build_model(name, SHAPE, CLASSES, seed=3)
    with torch.random.fork_rng(devices=[]):
        model.train()(torch.randn(5, *SHAPE)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
        again, x = filled_model(name, SHAPE, CLASSES, get_state(model), seed=3).eval(), torch.randn(2, *SHAPE)
        assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("name", ["dropout", "weight.norm", "adapted", "everything"])
def test_what_can_work_does_so_to_the_end(register, run, name: str) -> None:  # type: ignore[no-untyped-def]
    register(name, GOOD[name])
    settings = {"num_server_rounds": 1, "train_examples": 20, "global_test_size": 100, "num_clusters": 2}
    result = run(clients=4, client_models=f"{name},mlp", model=name, clients_per_node=2, clients_at_once=2, **settings)
    assert result.summary["status"] == "completed"
    loaded = load_run(result.directory)
    assert loaded.universals == ["universal", "universal-mlp"]
    assert any(expert.endswith("-mlp") for expert in loaded.experts)
    assert loaded.gate is not None
    federation = build_federation(result.config, 4)
    pixels, test = federation.dataset.test.x[federation.test_indices].float() / 16.0, federation.global_test()
    right = loaded.universal(pixels.numpy()).argmax(dim=1) == test.y
    assert float(right.double().mean()) == pytest.approx(result.summary["universal_accuracy"]), "as in the run"
    x = torch.rand(2, 1, 8, 8).numpy()
    assert loaded.universal(x).shape == (2, 10)
    assert all(loaded.expert(expert)(x).shape == (2, 10) for expert in loaded.choose(x))


def test_a_run_whose_model_is_not_registered_says_so_and_blames_no_file(register, run) -> None:  # type: ignore[no-untyped-def]
    settings = {"num_server_rounds": 1, "train_examples": 20, "global_test_size": 100}
    with MODELS.scope():
        register("mine-2", lambda *_: of())
        directory = run(clients=4, model="mine-2", **settings).directory
        loaded = load_run(directory)
    for read in (lambda: load_run(directory), lambda: loaded.universal, lambda: loaded.gate.network(0, loaded.task)):
        with pytest.raises(DataError, match="the run has a model 'mine-2', which is not registered here") as caught:
            read()  # type: ignore[no-untyped-call]
        assert "damaged" not in str(caught.value)
    with pytest.raises(ConfigError, match="^model: 'mine-2' does not exist"):
        run(clients=4, model="mine-2")
    others: tuple[Build, ...] = (
        lambda *_: of(nn.Linear(8, 8)),
        lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES), nn.Softmax(dim=1)),
    )
    for other in others:
        with MODELS.scope():
            register("mine-2", other)
            with pytest.raises(
                DataError, match="does not fit .* of model 'mine-2' as it is here.; restore the file, or the code"
            ):
                load_run(directory)


def test_what_is_read_has_its_constants(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", GOOD["constant"])
    state = of(Constant()).state_dict()
    model = filled_model("mine", SHAPE, CLASSES, state, seed=0)
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert ClientConfig(model="mine").models_of_clients == ["mine"]
