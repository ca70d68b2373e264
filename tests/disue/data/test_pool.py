"""A dataset of a person's own, divided by a scenario."""

from pathlib import Path

import numpy as np
import pytest
import torch

from disue.config import ClientConfig
from disue.data import build_federation, load_dataset
from disue.data.pool import load_pool
from disue.errors import ConfigError, DataError

DIGITS = load_dataset("digits")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """The training digits as a file."""
    np.savez(tmp_path / "pool.npz", x=DIGITS.train.x.numpy() * 15, y=DIGITS.train.y.numpy())
    return tmp_path / "pool.npz"


def test_it_is_parted_and_normalised_by_its_training_part(pool: Path) -> None:
    found = load_pool(str(pool), (1, 8, 8), 0.25)
    assert found.class_names == tuple("0123456789")
    assert len(found.train) + len(found.test) == len(DIGITS.train)
    assert abs(len(found.test) / len(DIGITS.train) - 0.25) < 0.01
    normal = found.normalise(found.train.x)
    assert abs(float(normal.mean())) < 1e-4
    assert float(normal.std()) == pytest.approx(1.0, abs=1e-3)
    again = load_pool(str(pool), (1, 8, 8), 0.25)
    assert torch.equal(again.test.x, found.test.x)


@pytest.mark.parametrize("scenario", ["label-groups", "rotation", "dirichlet"])
def test_clients_and_server_have_disjoint_parts_as_of_any_dataset(pool: Path, scenario: str) -> None:
    config = ClientConfig(dataset=f"path:{pool}", input_shape="1x8x8", scenario=scenario)
    federation = build_federation(config, 4)
    assert federation.task.shape == (1, 8, 8)
    trained = [int(i) for part in (*federation.train_parts, federation.proxy_indices) for i in part]
    assert len(trained) == len(set(trained))
    assert federation.client(0).train.x.shape[1:] == (1, 8, 8)
    assert len(federation.proxy()) == len(federation.proxy_indices)


def test_what_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((9, 8, 8), np.uint8), y=np.zeros(9, np.int64))
    with pytest.raises(ConfigError, match=r"^dataset: got 'path:.*one.npz', which has one class; at least 2 are"):
        load_pool(str(tmp_path / "one.npz"), (1, 8, 8), 0.2)
    (tmp_path / "empty").mkdir()
    for name, why in (("empty", "has no images"), ("nowhere", "is neither a folder nor an .npz file")):
        with pytest.raises(DataError, match=f"^dataset: '.*{name}' {why}"):
            load_pool(str(tmp_path / name), (1, 8, 8), 0.2)
