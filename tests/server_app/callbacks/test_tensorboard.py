"""TensorBoard's event files, read with TensorBoard's own reader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from disue.errors import ConfigError
from server_app.callbacks import tensorboard
from server_app.config import RunConfig
from server_app.run import preflight


def read(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def test_scalars_clusters_and_pictures_of_the_proxy_set_are_written(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=6, num_clusters=2, tensorboard=True)
    written = read(result.directory)
    for key, tag in (
        ("universal_accuracy", "accuracy/universal_accuracy"),
        ("bytes_up", "bytes/bytes_up"),
        ("ari", "run/ari"),
    ):
        points = written.Scalars(tag)
        assert [point.step for point in points] == [1, 2]
        assert [point.value for point in points] == pytest.approx([row[key] for row in result.rows])
    (first, _) = written.Histograms("clusters")
    counts = np.array(first.histogram_value.bucket)
    assert counts[counts > 0].tolist() == [4, 2] or counts[counts > 0].tolist() == [2, 4]
    assert written.Images("proxy")


def test_samples_of_the_generator_are_pictures_too(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=4, num_clusters=2, proxy="generator", generator_steps=2, tensorboard=True)
    assert {image.step for image in read(result.directory).Images("generator")} == {1, 2}


def test_a_run_writes_none_unless_asked(run) -> None:  # type: ignore[no-untyped-def]
    assert not (run(clients=4, method="fedavg").directory / "tensorboard").exists()


def test_where_tensorboard_is_missing_it_is_said_before_the_run(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard: got True; the package is missing, use false or pip install"):
        preflight(RunConfig(output_dir=str(tmp_path / "run"), tensorboard=True), 4)
    assert not (tmp_path / "run").exists()


def test_pixels_are_between_0_and_1() -> None:
    assert tensorboard.pixels_of(torch.tensor([-1.0, 0.0, 3.0])).tolist() == [0.0, 0.25, 1.0]
    assert tensorboard.pixels_of(torch.full((3,), 2.0)).tolist() == [0.0, 0.0, 0.0]
