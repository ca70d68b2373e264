"""Names are compared in one form, whatever they come from."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client_app.data import introduce
from disue.data.own import open_own, read_own
from disue.errors import ConfigError, DataError
from disue.naming import client_name, normal_name
from disue.nodes import NodeConfig
from disue.tasks import DataSummary, ImageClassification, agree
from disue.wire import HelloReply, HelloRequest
from disue.wire.reading import read_task, task_values
from server_app.config import RunConfig

COMPOSED, SPLIT = "ges\u00fcnd", "gesu\u0308nd"
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    yield


def write_folder(root: Path, *classes: str) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 10 * number + i, dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def write_npz(path: Path, *classes: str) -> Path:
    y = np.arange(4 * len(classes)) % len(classes)
    np.savez(path, x=np.zeros((len(y), 8, 8), dtype=np.uint8), y=y, classes=np.array(classes))
    return path


@given(st.text())
def test_letters_that_look_alike_are_one_name(text: str) -> None:
    forms = {normal_name(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")} | {normal_name(text)}
    assert len(forms) == 1
    assert normal_name(forms.copy().pop()) in forms


def test_all_that_gives_a_name_gives_it_in_one_form(tmp_path: Path) -> None:
    assert SPLIT != COMPOSED
    assert client_name({"name": SPLIT}) == COMPOSED
    assert NodeConfig.from_flower({"name": SPLIT, "data-path": "/"}).client == COMPOSED
    assert RunConfig.from_flower({"classes": f"a, {SPLIT}"}).class_names == ("a", COMPOSED)
    assert RunConfig.from_flower({"classes": f"a, {SPLIT}"}).to_flower()["classes"] == f"a, {COMPOSED}"
    assert read_own(write_folder(tmp_path / "f", SPLIT, "a"), SHAPE).class_names == ("a", COMPOSED)
    assert read_own(write_npz(tmp_path / "a.npz", SPLIT, "a"), SHAPE).class_names == (COMPOSED, "a")
    task = ImageClassification((SPLIT, "a"), SHAPE, (0.0,), (1.0,))
    assert task.class_names == (COMPOSED, "a") == DataSummary((SPLIT, "a"), (0.0,), (0.0,)).class_names
    request = ConfigRecord({**task_values(task), "class-names": [SPLIT, "a"]})
    assert read_task(request) == task


def test_a_hello_of_another_system_is_read_in_the_same_form() -> None:
    def told(name: str, *classes: str) -> HelloReply:
        config = ConfigRecord({"name": name, "model": "mlp", "class-names": list(classes)})
        metrics: dict[str, Any] = {"num-examples": 3, "group": -1, "num-partitions": 0, "mean": [0.5], "std": [0.1]}
        content = RecordDict({"config": config, "metrics": MetricRecord(metrics)})
        return HelloReply.from_message(Message(content, reply_to=HelloRequest().to_message(7)))

    first, second = told(f"a-{SPLIT}", SPLIT, "b"), told(f"a-{COMPOSED}", "b", COMPOSED)
    assert first.name == second.name == f"a-{COMPOSED}"
    assert first.summary
    assert second.summary
    assert agree([(3, first.summary), (3, second.summary)], SHAPE).class_names == ("b", COMPOSED)


def test_two_clients_that_write_a_class_differently_have_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "mac", SPLIT, "krank")
    write_folder(tmp_path / "pc", COMPOSED, "krank")
    config = RunConfig(dataset="own", input_shape="1x8x8")
    nodes = [NodeConfig(name=name, data_path=str(tmp_path / name)) for name in ("mac", "pc")]
    summaries = [introduce(config, node, "mlp").summary for node in nodes]
    task = agree([(6, summary) for summary in summaries if summary is not None], SHAPE)
    assert task.class_names == (COMPOSED, "krank")
    for name in ("mac", "pc"):
        data = open_own(str(tmp_path / name), SHAPE, 0.25, 0, name).for_task(task)
        assert sorted(data.train.y.tolist() + data.test.y.tolist()) == [0] * 4 + [1] * 4


def test_both_forms_beside_each_other_are_one_class_or_a_mistake(tmp_path: Path) -> None:
    own = read_own(write_folder(tmp_path / "f", SPLIT, COMPOSED, "a"), SHAPE)
    assert own.class_names == ("a", COMPOSED)
    assert own.y.bincount().tolist() == [4, 8]
    with pytest.raises(DataError, match="classes is not a list of names, each once"):
        read_own(write_npz(tmp_path / "a.npz", SPLIT, COMPOSED), SHAPE)
    with pytest.raises(ConfigError, match="classes: got .* each once"):
        RunConfig.from_flower({"classes": f"{SPLIT},{COMPOSED}"})
    with pytest.raises(ValueError, match="each once"):
        ImageClassification((SPLIT, COMPOSED), SHAPE, (0.0,), (1.0,))


def test_a_name_that_grows_is_measured_as_it_is_compared() -> None:
    grows = "\u0958" * 60  # written as two code points each
    with pytest.raises(ConfigError, match="should have at most 100 characters"):
        NodeConfig.from_flower({"name": grows, "data-path": "/"})
    with pytest.raises(ValueError, match="of up to 100 letters"):
        ImageClassification((grows, "a"), SHAPE, (0.0,), (1.0,))
