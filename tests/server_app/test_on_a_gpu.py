"""Whole runs on a GPU: they end, near where the same run on the CPU ends, and twice at the same place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS: list[dict[str, Any]] = [
    {"model": "cnn"},
    {"model": "cnn", "proxy": "generator", "generator_steps": 20},
    {"model": "lenet", "local_loss": "balanced", "prox_mu": 0.01},
    {"model": "cnn", "client_models": "cnn,mlp"},
    {"model": "lenet", "method": "ifca", "num_clusters": 2},
    {"model": "cnn", "method": "feddf"},
    {"model": "cnn", "method": "scaffold"},
    {"model": "cnn", "method": "ccvr"},
    {"model": "lenet", "method": "ditto"},
    {"model": "lenet", "method": "fedrep"},
    {"model": "cnn", "method": "stocfl"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_run_ends_near_where_it_ends_on_a_cpu(run: Callable[..., Any], settings: dict[str, Any]) -> None:
    on_cpu, on_gpu = run(**settings, device="cpu"), run(**settings, device="cuda")
    assert on_gpu.summary["status"] == "completed"
    assert on_gpu.summary["universal_accuracy"] == pytest.approx(on_cpu.summary["universal_accuracy"], abs=0.1)


@pytest.mark.parametrize("clients_per_node", [1, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_is_repeatable_to_the_last_bit(run: Callable[..., Any], clients_per_node: int, mixed: bool) -> None:
    settings = {"model": "cnn", "device": "cuda", "clients_per_node": clients_per_node, "mixed_precision": mixed}
    models = [load_file(run(**settings).directory / "universal.safetensors") for _ in range(2)]
    assert all(torch.equal(models[0][name], tensor) for name, tensor in models[1].items())
