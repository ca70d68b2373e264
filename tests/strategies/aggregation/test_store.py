"""Models that do not fit into memory are in a file, and are the same."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from disue.models import State
from strategies.aggregation import store
from strategies.aggregation.store import UpdateStore


def model(seed: int, size: int = 1000) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(size, 3, generator=generator).T,
        "half": torch.randn(7, generator=generator).half(),
        "count": torch.tensor(seed),
        "nothing": torch.zeros(0, 4),
    }


def bytes_of(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("region", [2**20, 2**13])
def test_a_model_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: int) -> None:
    monkeypatch.setattr(store, "REGION_BYTES", region)  # many models in a region, and a region smaller than a model
    models = [model(seed, size=1000 + 100 * seed) for seed in range(20)]
    own = UpdateStore(2 * bytes_of(models[1]), tmp_path)
    kept = [own.put(state) for state in models]
    assert sum(state is given for state, given in zip(kept, models, strict=True)) == 2
    assert own.in_memory + own.in_file == sum(map(bytes_of, models))
    for state, given in zip(kept, models, strict=True):
        assert list(state) == list(given)
        for name, tensor in given.items():
            assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(state[name], tensor)
    assert list(tmp_path.iterdir()) == []


def test_what_is_still_in_use_outlives_the_round_and_the_file_goes_with_it(tmp_path: Path) -> None:
    gc.collect()
    before = descriptors()
    own = UpdateStore(0, tmp_path)
    last = own.put(model(0))["weight"]
    own.clear()
    assert torch.equal(last, model(0)["weight"])
    other = own.put(model(1))["weight"]
    assert torch.equal(last, model(0)["weight"])
    assert not torch.equal(last, other)
    own.clear()
    del last, other
    gc.collect()
    assert descriptors() == before


def test_without_a_limit_nothing_is_written(tmp_path: Path) -> None:
    own, given = UpdateStore(None, tmp_path / "is not there"), model(0)
    assert own.put(given) is given
    with pytest.raises(FileNotFoundError):
        UpdateStore(0, tmp_path / "is not there").put(given)


MESSAGES = """
import os, sys
import numpy as np, torch
from strategies.aggregation import store

store.REGION_BYTES = 2**22
kept = []

def memory():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 2**10

def receive(models):
    state = {name: torch.from_numpy(np.frombuffer(bytearray(size), np.float32)) for name, size in SIZES.items()}
    kept.append(torch.ones(2700))
    exact = [torch.cat([tensor.double() for tensor in state.values()]) for _ in range(2)]
    (exact[0] - exact[1]).norm()
    kept.append(models.put(state))

def growth(reply_memory):
    models = store.UpdateStore(memory=reply_memory)
    receive(models)
    before = memory()
    for _ in range(40):
        receive(models)
    return memory() - before

SIZES = {"a": 870_000, "b": 3_600_000}
give_back = store.give_back_freed_memory
for give_back_or_hold in (give_back, lambda: None):
    if not os.fork():
        store.give_back_freed_memory = give_back_or_hold
        print(growth(int(sys.argv[1])), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize(("reply_memory", "models"), [(0, 0), (2**30, 171)])
def test_what_is_freed_between_models_is_given_back(reply_memory: int, models: int) -> None:
    """In MiB, beside the models in memory; a C library that needs no help would be as good without."""

    command = [sys.executable, "-c", MESSAGES, str(reply_memory)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    given_back, held = (float(growth) - models for growth in told.split())
    assert given_back < 40
    assert held > 80
