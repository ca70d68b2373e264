"""Clients that train as one network come where each comes alone."""

import pytest
import torch
from tests_support import numbered_classes

from client_app.train import train
from client_app.train_batched import train_batched
from disue.data import Examples
from disue.models import State, build_model, get_state
from disue.objective import LocalObjective
from disue.seeding import torch_rng
from server_app.config import RunConfig

SIZES = (23, 8, 40, 1)  # other numbers of steps, short batches, and a batch of one example


def some_examples(shape: tuple[int, int, int]) -> list[Examples]:
    g = torch.Generator().manual_seed(1)
    return [Examples(torch.randn(n, *shape, generator=g), torch.randint(10, (n,), generator=g)) for n in SIZES]


def rngs() -> list[torch.Generator]:
    return [torch_rng("train", i) for i in range(len(SIZES))]


def one_by_one(model_name, shape, starts, config, objective):  # type: ignore[no-untyped-def]
    found = []
    for start, examples, rng in zip(starts, some_examples(shape), rngs(), strict=True):
        model = build_model(model_name, shape, 10)
        model.load_state_dict(start)
        found.append(
            (model, train(model, examples, config, objective, rng, torch.device("cpu"), numbered_classes(10, shape)))
        )
    return [(get_state(model), result) for model, result in found]


@pytest.mark.parametrize("model_name", ["mlp", "cnn", "lenet"])
@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({}, LocalObjective()),
        ({"momentum": 0.0, "local-epochs": 1}, LocalObjective(prox_mu=0.1)),
        ({"weight-decay": 0.01}, LocalObjective(local_loss="balanced")),
        ({"mixed-precision": True}, LocalObjective()),
    ],
)
def test_together_is_as_one_by_one(model_name: str, settings: dict[str, object], objective: LocalObjective) -> None:
    shape = (1, 8, 8)
    config = RunConfig.from_flower({"batch-size": 10, "learning-rate": 0.05, "local-epochs": 3, **settings})
    starts: list[State] = [get_state(build_model(model_name, shape, 10, seed)) for seed in range(len(SIZES))]
    alone = one_by_one(model_name, shape, starts, config, objective)
    model = build_model(model_name, shape, 10)
    together = train_batched(
        model, starts, some_examples(shape), config, objective, rngs(), torch.device("cpu"), numbered_classes(10, shape)
    )
    for (state, result), (expected, told), start in zip(together, alone, starts, strict=True):
        assert result.steps == told.steps
        near = 0.05 if config.mixed_precision else 1e-5  # bfloat16 has eight bits
        assert result.loss == pytest.approx(told.loss, abs=near)
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=near, atol=near)
            assert state[name].dtype == torch.float32
        assert not torch.equal(state["head.weight"], start["head.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("mixed", "near"), [(False, 1e-3), (True, 0.05)])
def test_on_a_gpu_too(mixed: bool, near: float) -> None:
    shape = (1, 28, 28)
    config = RunConfig.from_flower({"batch-size": 10, "local-epochs": 2, "mixed-precision": mixed})
    starts: list[State] = [get_state(build_model("cnn", shape, 10, seed)) for seed in range(len(SIZES))]
    alone = one_by_one("cnn", shape, starts, RunConfig.from_flower({"batch-size": 10}), LocalObjective())
    model, device = build_model("cnn", shape, 10), torch.device("cuda")
    together = train_batched(
        model, starts, some_examples(shape), config, LocalObjective(), rngs(), device, numbered_classes(10, shape)
    )
    for (state, _), (expected, _) in zip(together, alone, strict=True):
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=near, atol=near)
