"""Shared fixtures: short runs through the inline engine, and small models."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from disue.models import build_model
from disue_cli.compare.cells import THREAD_VARIABLES
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig
from strategies.updates import ClientUpdate
from tests.golden.compare import PINNED

pytest.register_assert_rewrite("deployment")
settings.register_profile("on a busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("on a busy machine")

OF_BITS = tuple(dict.fromkeys((*PINNED, *THREAD_VARIABLES)))
"""Variables that PyTorch looks at when it starts to compute: results differ by them in the last digits."""
FROM_OUTSIDE = {name: os.environ.get(name) for name in OF_BITS}


def pytest_collection_finish() -> None:
    """No module that a test imports sets them, since they would stay for all tests of this process.

    Raises
    ------
    pytest.UsageError
        With the names of those that changed.
    """
    changed = [name for name in OF_BITS if os.environ.get(name) != FROM_OUTSIDE[name]]
    if changed:
        raise pytest.UsageError(f"a module changed {', '.join(changed)} when it was imported")


FAST = {
    "model": "mlp",
    "num-server-rounds": 2,
    "local-epochs": 1,
    "distill-steps": 20,
    "proxy-samples": 0,
    "calibration-epochs": 2,
    "report": False,
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files are written as ever, but nobody waits until they are safe from a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _bits_stay() -> Iterator[None]:
    """No test leaves one of them changed to those after it."""
    yield
    assert {name: os.environ.get(name) for name in OF_BITS} == FROM_OUTSIDE


@dataclass
class Run:
    """A finished inline run."""

    config: RunConfig
    directory: Path
    summary: dict[str, Any]
    rows: list[dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Run the real ServerApp and ClientApp in this process: ``run(clients, key=value, ...)``."""
    count = 0

    def go(clients: int = 6, **overrides: Any) -> Run:
        nonlocal count
        count += 1
        directory = tmp_path / f"run-{count}"
        values = FAST | {key.replace("_", "-"): value for key, value in overrides.items()}
        config = RunConfig.from_flower(values | {"output-dir": str(directory)})
        rows: list[dict[str, Any]] = []
        summary = run_inline(config, clients, rows.append)
        return Run(config, directory, summary, rows)

    return go


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six clients in two clusters, not to be changed."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    run_inline(RunConfig.from_flower(FAST | {"num-clusters": 2, "output-dir": str(directory)}), 6)
    return directory


@pytest.fixture
def spoilt(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "spoilt"))


@pytest.fixture
def make_updates() -> Callable[..., list[ClientUpdate]]:
    """Random updates of a small model: ``make_updates(count, seed=0)``."""

    def make(count: int, seed: int = 0) -> list[ClientUpdate]:
        generator = torch.Generator().manual_seed(seed)
        start = build_model("mlp", (1, 4, 4), 3).state_dict()
        return [
            ClientUpdate(
                name=f"client-{i}",
                start=dict(start),
                state={k: v + torch.randn(v.shape, generator=generator) for k, v in start.items()},
                num_examples=int(torch.randint(1, 50, (), generator=generator)),
            )
            for i in range(count)
        ]

    return make


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What is logged, at any level."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("flwr"), Listener()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)
    logger.setLevel(level)
