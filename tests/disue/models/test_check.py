"""Models that a person registers: what cannot work is refused before the first round, and what can works to the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from disue.config import ClientConfig
from disue.errors import ConfigError, DataError
from disue.models import MODELS, Classifier, Shape, filled_model
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

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Flatten()
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x))  # type: ignore[no-any-return]


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


def raises(_shape: Shape, _classes: int) -> Classifier:
    raise RuntimeError("no such\nlayer")


numbers = iter(range(1000))
BAD: dict[str, tuple[Build, str]] = {
    "batch norm": (lambda *_: of(nn.BatchNorm1d(8)), "the buffer 'body.2.running_mean' (float32)"),
    "integer buffer": (
        changed(lambda m: m.body.register_buffer("steps", torch.zeros((), dtype=torch.int64))),
        "the buffer 'body.steps' (int64)",
    ),
    "kept constant": (lambda *_: of(Constant(kept=True)), "the buffer 'body.2.scale' (float32)"),
    "of a batch": (
        lambda *_: of(nn.BatchNorm1d(8, track_running_stats=False)),
        "(ValueError: Expected more than 1 value",
    ),
    "of the batch": (lambda *_: of(Centred()), "by the others of its batch; use GroupNorm in place of BatchNorm"),
    "frozen": (changed(lambda m: m.body[1].weight.requires_grad_(False)), "'body.1.weight' with requires_grad=False"),
    "double": (changed(lambda m: m.head.double()), "the parameter 'head.weight' of type torch.float64"),
    "half": (changed(lambda m: m.half()), "the parameter 'body.1.weight' of type torch.float16"),
    "tied": (lambda *_: of(Tied()), "under two names, 'body.2.first.weight' and 'body.2.second.weight'"),
    "lazy": (
        lambda *_: Classifier(nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), 8, CLASSES),
        "whose shape is not known",
    ),
    "outside": (changed(lambda m: m.register_parameter("scale", nn.Parameter(torch.ones(1)))), "'scale' outside of"),
    "not finite": (changed(lambda m: nn.init.constant_(m.head.bias, torch.inf)), "'head.bias' with initial values"),
    "other head": (lambda *_: Other(), "has no module 'head'; build a disue.models.Classifier"),
    "no body": (lambda *_: nn.Linear(64, CLASSES), "has no module 'body'"),
    "conv head": (changed(lambda m: setattr(m, "head", nn.Conv2d(8, 10, 1))), "has a head that is a Conv2d"),
    "no bias": (
        changed(lambda m: setattr(m, "head", nn.Linear(8, 10, bias=False))),
        "use a torch.nn.Linear with a bias",
    ),
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
    "hidden": (lambda *_: of(Hidden()), "cannot be trained on inputs 1x8x8 ("),
}
GOOD: dict[str, Build] = {
    "constant": lambda *_: of(Constant()),
    "dropout": lambda *_: of(nn.Dropout(0.5)),
    "unused": lambda *_: of(Unused()),
    "layer-norm": lambda *_: of(nn.LayerNorm(8)),
    "weight.norm": lambda *_: of(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
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


@pytest.mark.parametrize("kind", ["batch norm", "frozen", "other head"])
@pytest.mark.parametrize("others", [{}, {"client_models": "mlp,mine"}])
def test_it_is_refused_before_the_first_round(register, run, tmp_path: Path, kind: str, others: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    register("mine", BAD[kind][0])
    with pytest.raises(ConfigError, match="model: 'mine' has "):
        run(clients=4, model="mine" if not others else "mlp", **others)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", GOOD)
def test_what_can_work_does_so_to_the_end(register, run, name: str) -> None:  # type: ignore[no-untyped-def]
    register(name, GOOD[name])
    settings = {"num_server_rounds": 1, "train_examples": 20, "global_test_size": 100, "num_clusters": 2}
    result = run(clients=4, client_models=f"{name},mlp", model=name, clients_per_node=2, clients_at_once=2, **settings)
    assert result.summary["status"] == "completed"
    loaded = load_run(result.directory)
    assert loaded.universals == ["universal", "universal-mlp"]
    assert any(expert.endswith("-mlp") for expert in loaded.experts)
    assert loaded.gate is not None
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
    register("mine-2", lambda *_: of(nn.Linear(8, 8)))
    with pytest.raises(
        DataError, match="does not fit .* of model 'mine-2' as it is here.; restore the file, or the code"
    ):
        load_run(directory)


def test_what_is_read_has_its_constants(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", GOOD["constant"])
    state = of(Constant()).state_dict()
    model = filled_model("mine", SHAPE, CLASSES, state)
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert ClientConfig(model="mine").models_of_clients == ["mine"]
