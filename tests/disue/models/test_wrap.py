"""Networks of any kind: where their head is found, and what of them travels."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from client_app.client import workpiece
from disue.batches import batches
from disue.errors import ConfigError, WireError
from disue.gradients import mean_gradient
from disue.models import (
    MODELS,
    STATISTICS,
    Classifier,
    State,
    build_model,
    fill,
    get_state,
    interpolate,
    same_model,
    trained,
    travelling,
)
from disue.runs.reading import load_run
from disue.seeding import derive_seed
from disue.signature import NOTHING
from disue.torchvision_compat import torchvision
from disue.wire import TrainReply
from strategies.aggregation.robust import AGGREGATORS, Aggregator
from strategies.aggregation.server_optimizer import ServerOptimizer, ServerOptimizerState, adam
from strategies.aggregation.steps import stepped
from strategies.methods import METHODS
from strategies.updates import ClientUpdate

SHAPE, CLASSES = (1, 8, 8), 10


class Tokens(nn.Module):
    """Two layers of one weight, and a frozen normalisation before a free one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.still = nn.BatchNorm1d(64).requires_grad_(False)
        self.free = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.free(self.still(self.second(self.first(x.flatten(1)).relu()))))  # type: ignore[no-any-return]


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


@pytest.fixture
def register() -> Iterator[Callable[..., object]]:
    """Register networks until the end of the test: ``register(name, build)``."""
    with MODELS.scope():
        yield lambda name, build: MODELS.register(name)(lambda shape, num_outputs: build())


# --- the head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: torchvision().models.resnet18(num_classes=CLASSES), "fc"),
        (lambda: torchvision().models.mobilenet_v3_small(num_classes=CLASSES), "classifier.3"),
        (lambda: torchvision().models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=CLASSES), "heads.head"),
    ],
    ids=["resnet18", "mobilenet", "vit"],
)
def test_of_networks_that_people_have_the_head_is_found_and_nothing_else_is_computed(register, build, head) -> None:  # type: ignore[no-untyped-def]
    register("theirs", build)
    model = build_model("theirs", (3, 32, 32), CLASSES, seed=3).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(3, "model"))
        network = build().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(x), network(x))
    assert model.head.weight.shape == network.get_submodule(head).weight.shape
    names = [
        f"head{name.removeprefix(head)}" if name.startswith(head) else f"body.{name}"
        for name, _ in network.named_parameters()
    ]
    assert {name for name in travelling(model) if not name.startswith(STATISTICS)} == set(names)


# --- what travels -----------------------------------------------------------------------------------


def test_parameters_travel_once_and_so_do_statistics_and_nothing_else(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", Tokens)
    state = get_state(build_model("mine", SHAPE, CLASSES))
    assert list(state) == [
        *("body.first.weight", "body.first.bias", "body.second.bias", "body.free.weight", "body.free.bias"),
        *("statistics.body.free.running_mean", "statistics.body.free.running_var", "head.weight", "head.bias"),
    ]
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_what_does_not_travel_is_as_it_was_when_a_model_is_filled(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", Tokens)
    model, fresh = (build_model("mine", SHAPE, CLASSES) for _ in range(2))
    before = get_state(model)
    model.train()(torch.randn(8, *SHAPE))
    assert not same_model(get_state(model), before)
    assert torch.equal(model.body.still.running_mean, torch.zeros(64)), "a frozen normalisation does not change"
    assert int(model.body.free.num_batches_tracked) == 1
    fill(model, before)
    assert all(torch.equal(own, other) for own, other in zip(model.buffers(), fresh.buffers(), strict=True))


def test_tied_weights_are_still_tied_when_a_model_is_filled(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", Tokens)
    model = build_model("mine", SHAPE, CLASSES)
    fill(model, {name: tensor + 1.0 for name, tensor in get_state(model).items()})
    assert model.body.first.weight is model.body.second.weight


def test_a_client_in_a_process_with_others_comes_to_what_it_comes_to_in_its_own(register, run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    register("mine", with_batch_norm)
    together = run(clients=4, model="mine", method="fedavg")
    monkeypatch.setattr("client_app.client.workpiece", workpiece.__wrapped__)  # a model for each message
    alone = run(clients=4, model="mine", method="fedavg")
    files = [(own.directory / "universal.safetensors").read_bytes() for own in (together, alone)]
    assert files[0] == files[1]


# --- statistics are averaged ------------------------------------------------------------------------


def update_of(name: str, start: State, change: float) -> ClientUpdate:
    return ClientUpdate(name, start, {key: tensor + change for key, tensor in start.items()}, 10)


def test_no_optimiser_goes_beyond_an_average_of_statistics(register) -> None:  # type: ignore[no-untyped-def]
    register("mine", with_batch_norm)
    before = get_state(build_model("mine", SHAPE, CLASSES))
    variance = "statistics.body.2.running_var"
    low = {**before, variance: before[variance] - 0.75}
    average = interpolate(before, low, 1.0)
    moved, _ = ServerOptimizer(adam, learning_rate=5.0).step(ServerOptimizerState(), before, average)
    assert torch.equal(moved[variance], low[variance])
    assert list(moved) == list(before)
    updates = [update_of("a", low, 0.0), update_of("b", before, -0.5)]
    velocity = {name: tensor - 1.0 for name, tensor in trained(before).items()}
    _, stepped_to, step = stepped(Aggregator(AGGREGATORS["mean"]), updates, {0: updates}, low, velocity, 0.9)
    assert torch.allclose(stepped_to[variance], (low[variance] + before[variance] - 0.5) / 2.0)
    assert step.keys() == trained(before).keys()
    assert mean_gradient(before, low, 2, 0.1).keys() == trained(before).keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "scaffold", "server_learning_rate": 1.5},
        {"method": "fedadam"},
        {"method": "disue", "num_clusters": 2},
    ],
)
def test_a_run_with_statistics_keeps_variances(register, run, settings: dict[str, Any]) -> None:  # type: ignore[no-untyped-def]
    """Batches of one example, of which a normalisation can learn nothing, included."""
    register("mine", with_batch_norm)
    result = run(clients=5, model="mine", batch_size=1, num_server_rounds=3, **settings)
    variance = load_run(result.directory).universal.module.network.get_buffer("body.2.running_var")
    assert float(variance.min()) > 0.0
    assert not torch.equal(variance, torch.ones(16))


def test_a_secure_sum_has_statistics_in_it(register, run) -> None:  # type: ignore[no-untyped-def]
    register("mine", with_batch_norm)
    secure, plain = (
        run(clients=4, model="mine", method="fedavg", num_server_rounds=1, **settings)
        for settings in ({"privacy": "secure"}, {})
    )
    first, second = (load_run(own.directory).universal.module.state_dict() for own in (secure, plain))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=1e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [with_batch_norm, Tokens])
def test_every_method_takes_any_network(register, run, method: str, kind: Callable[[], nn.Module]) -> None:  # type: ignore[no-untyped-def]
    register("mine", kind)
    assert run(clients=6, model="mine", method=method, num_clusters=2).summary["status"] == "completed"


def test_a_variance_from_outside_that_is_negative_is_refused(register) -> None:  # type: ignore[no-untyped-def]
    """One client's would make the mean of all negative, and every output not a number."""
    register("mine", with_batch_norm)
    like = get_state(build_model("mine", SHAPE, CLASSES))
    for name, words in (("running_var", "below 0; it is a variance"), ("running_mean", "")):
        state = like | {f"statistics.body.2.{name}": torch.full((16,), -0.5)}
        asked = Message(RecordDict(), dst_node_id=1, message_type="train")
        message = TrainReply(state, 9, 0.5, 3).to_message(asked)
        if words:
            with pytest.raises(WireError, match=f"^statistics.body.2.{name} has values {words}$"):
                TrainReply.from_message(message, like=like, asked=NOTHING)
        else:
            assert same_model(TrainReply.from_message(message, like=like, asked=NOTHING).state, state)


def test_noise_is_not_added_to_statistics(register, run) -> None:  # type: ignore[no-untyped-def]
    register("mine", with_batch_norm)
    with pytest.raises(ConfigError, match=r"^model: 'mine' has 'body.2.running_mean', and noise could make a variance"):
        run(clients=4, model="mine", method="fedavg", privacy="dp", dp_noise=1.0)


# --- batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "least", "sizes"),
    [(4, 1, [4, 4, 1]), (4, 2, [4, 5]), (1, 2, [2, 2, 2, 3]), (9, 2, [9]), (10, 1, [9]), (3, 2, [3, 3, 3])],
)
def test_a_last_batch_of_too_few_is_part_of_the_one_before(size: int, least: int, sizes: list[int]) -> None:
    order = torch.randperm(9)
    found = batches(order, size, least)
    assert [len(batch) for batch in found] == sizes
    assert torch.equal(torch.cat(found), order)


def test_one_example_alone_is_a_batch() -> None:
    assert [len(batch) for batch in batches(torch.zeros(1, dtype=torch.int64), 4, 2)] == [1]


def test_a_model_of_ours_is_what_it_was() -> None:
    model = build_model("cnn", SHAPE, CLASSES)
    assert isinstance(model, Classifier)
    assert (model.statistics, dict(model.constants), model.least_batch) == ((), {}, 1)
    assert list(travelling(model)) == list(model.state_dict())
