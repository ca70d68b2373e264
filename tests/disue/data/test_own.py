"""A client's own data: what is read, what is refused with which words, and what is held out."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_diabetes

from disue.data.own import OwnSplit, open_own, split
from disue.errors import DataError
from disue.tasks import ImageClassification

SHAPE = (1, 6, 6)


def opened(path: Path, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> OwnSplit:
    values: dict[str, Any] = {"test_fraction": 0.25, "seed": 0, "name": "hospital-a"} | changes
    return open_own(str(path), shape, **values)


def write_folder(root: Path, counts: dict[str, int], value: int = 0) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (6, 6), value + i).save(root / name / f"{i}.png")
    return root


def write_npz(path: Path, count: int = 8, **changes: Any) -> Path:
    arrays = {"x": np.zeros((count, 6, 6), dtype=np.uint8), "y": np.arange(count) % 2} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_a_folder_is_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ill": 3, "healthy": 5})
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.txt").write_text("mine")
    made = opened(tmp_path)
    assert made.data.class_names == ("healthy", "ill")
    assert made.data.y.tolist() == [0] * 5 + [1] * 3
    np.testing.assert_allclose(made.data.x[:, 0, 0, 0] * 255.0, [0, 1, 2, 3, 4, 0, 1, 2], atol=1e-4)


def test_an_npz_names_its_classes_or_their_numbers_are_their_names(tmp_path: Path) -> None:
    y = np.array([7, 7, 10, 7, 10, 10])
    plain = opened(write_npz(tmp_path / "a.npz", 6, y=y))
    assert plain.data.class_names == ("7", "10")
    assert plain.data.y.tolist() == [0, 0, 1, 0, 1, 1]
    classes = np.array([f"c{i}" for i in range(11)])
    named = opened(write_npz(tmp_path / "b.npz", 6, y=y.astype(np.uint8), classes=classes))
    assert named.data.class_names == ("c7", "c10")


def test_examples_for_a_task_have_its_labels_and_its_normalisation(tmp_path: Path) -> None:
    made = opened(write_folder(tmp_path, {"cat": 4, "dog": 4}, value=100))
    task = ImageClassification(("bird", "dog", "cat"), SHAPE, (0.25,), (0.5,))
    data = made.for_task(task)
    assert sorted(data.train.y.tolist() + data.test.y.tolist()) == [1] * 4 + [2] * 4
    expected = (made.data.x[made.train] - 0.25) / 0.5
    torch.testing.assert_close(data.train.x, expected)
    assert data.group == -1
    with pytest.raises(DataError, match="does not have: 'dog'"):
        made.for_task(ImageClassification(("cat", "bird"), SHAPE, (0.25,), (0.5,)))
    with pytest.raises(DataError, match=r"the images are \(1, 6, 6\); the run's are \(3, 6, 6\)"):
        made.for_task(ImageClassification(("cat", "dog"), (3, 6, 6), (0.25,) * 3, (0.5,) * 3))


def test_the_server_is_told_of_training_examples_only(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 6, 6, 3))
    made = opened(write_npz(tmp_path / "a.npz", x=x, y=np.arange(40) % 3), (3, 6, 6))
    told = made.summary()
    pixels = x[made.train.numpy()]
    np.testing.assert_allclose(told.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(told.std, pixels.std(axis=(0, 1, 2)), atol=1e-6)
    assert told.class_names == ("0", "1", "2")


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=200),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
    st.text(min_size=1, max_size=5),
)
def test_the_split_is_disjoint_complete_and_leaves_every_class_to_train_on(
    labels: list[int], fraction: float, seed: int, name: str
) -> None:
    y = torch.tensor(labels)
    counts = np.bincount(labels)
    assume(len(labels) >= 3 and counts.max() >= 2)
    try:
        train, test = split(y, fraction, seed, name)
    except DataError:  # one class of three examples, nearly all of which are wished for the test
        assert sum(max(0, min(round(fraction * int(c)), int(c) - 1)) for c in counts) > len(labels) - 2
        return
    assert sorted(train.tolist() + test.tolist()) == list(range(len(labels)))
    assert len(test) >= 1
    assert set(y[test].tolist()) <= set(y[train].tolist()) == set(labels)
    for label, count in enumerate(counts.tolist()):
        held_out = int((y[test] == label).sum())
        assert abs(held_out - fraction * count) <= 1.0
    again = split(y, fraction, seed, name)
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])


def test_another_seed_and_another_client_hold_out_others() -> None:
    y = torch.zeros(100, dtype=torch.int64)
    tests = [split(y, 0.2, seed, name)[1].tolist() for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    assert len({tuple(held_out) for held_out in tests}) == 3
    assert {len(held_out) for held_out in tests} == {20}


def test_too_few_images_cannot_be_split() -> None:
    for labels in ([0, 0], [0], [0, 1, 2], []):
        with pytest.raises(DataError, match="images are too few; at least 2 are needed for training and 1"):
            split(torch.tensor(labels, dtype=torch.int64), 0.2, 0, "a")
    train, test = split(torch.tensor([0, 0, 0]), 0.01, 0, "a")
    assert (len(train), len(test)) == (2, 1)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": None}, "'a.npz' has no array x"),
        ({"x": None, "y": None, "z": np.zeros(3)}, "'a.npz' has no array x and no array y"),
        ({"y": np.zeros(8)}, r"'a.npz': y is float64 \(8,\); expected 8 integers, one for each image"),
        ({"y": np.zeros(7, dtype=int)}, r"'a.npz': y is int64 \(7,\); expected 8 integers"),
        ({"y": np.zeros((8, 1), dtype=int)}, r"'a.npz': y is int64 \(8, 1\); expected 8 integers"),
        ({"y": np.arange(8) - 1}, "'a.npz': y has the label -1; expected 0 or more"),
        ({"classes": np.array(["a"])}, "'a.npz': y has the label 1; there are 1 classes, so at most 0"),
        ({"classes": np.array(["a", "a"])}, "'a.npz': classes is not a list of names, each once"),
        ({"classes": np.array([1, 2])}, "'a.npz': classes is not a list of names"),
        ({"x": np.full((8, 6, 6), 3.0)}, "'a.npz': x has floats from 3 to 3"),
        ({"x": np.zeros((0, 6, 6), dtype=np.uint8), "y": np.zeros(0, dtype=int)}, "'a.npz': x has no images"),
        ({"x": np.array([Harmful()] * 8)}, "'a.npz' cannot be read .not an .npz file of plain arrays"),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused(
    tmp_path: Path, arrays: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        opened(write_npz(tmp_path / "a.npz", **arrays))
    assert str(tmp_path) not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_files_that_are_not_there_or_not_right_are_refused_without_their_place(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "loose", {"cat": 3})
    Image.new("L", (4, 4)).save(tmp_path / "loose" / "x.png")
    write_folder(tmp_path / "broken", {"cat": 3})
    (tmp_path / "broken" / "cat" / "1.png").write_bytes(b"no")
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "cut.npz").write_bytes(write_npz(tmp_path / "whole.npz").read_bytes()[:300])
    for name, words in (
        ("nowhere", "data-path is neither a folder nor an .npz file; is it mounted, and readable"),
        ("nowhere.npz", "data-path is neither"),
        ("empty", "data-path has no images; expected a folder of images for each class"),
        ("loose", "'x.png' is in no class"),
        ("broken", r"^'cat/1.png' cannot be read \(not an image\)$"),
        ("text.npz", "'text.npz' cannot be read"),
        ("cut.npz", "'cut.npz' cannot be read"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            opened(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def test_an_array_that_was_saved_alone_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="'a.npz' cannot be read"):
        opened(tmp_path / "a.npz")


def test_data_are_read_once_until_they_change(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    assert opened(path) is opened(path)
    opened(path, seed=1)
    write_npz(path, 12)
    os.utime(path, ns=(1, 1))
    assert len(opened(path).data.y) == 12
    folder = write_folder(tmp_path / "f", {"a": 3, "b": 3})
    assert opened(folder) is opened(folder)
    Image.new("L", (6, 6)).save(folder / "b" / "9.png")
    assert len(opened(folder).data.y) == 7


def test_a_file_of_the_same_size_and_time_is_another_file(tmp_path: Path) -> None:
    """As two of one archive may be; one that is only touched is read again, and says the same."""
    path, other = (write_npz(tmp_path / name, y=np.arange(8) % 2 + more) for name, more in (("a.npz", 0), ("b.npz", 5)))
    for file in (path, other):
        os.utime(file, ns=(1, 1))
    assert path.stat().st_size == other.stat().st_size
    before = opened(path)
    os.utime(path, ns=(2, 2))
    touched = opened(path)
    assert touched is not before
    assert torch.equal(touched.data.x, before.data.x)
    os.utime(path, ns=(1, 1))
    opened(path)
    other.replace(path)
    assert opened(path).data.class_names == ("5", "6")


def test_a_quantity_in_the_place_of_classes_is_doubted_by_the_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = load_diabetes().target.astype(int)
    x = np.zeros((len(target), 6, 6), dtype=np.uint8)
    opened(write_npz(tmp_path / "a.npz", x=x, y=target))
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "hospital-a: 214 classes in 442 examples"
    ]


@pytest.mark.parametrize("name", ["scans.NPZ", "scans.Npz"])
def test_an_ending_is_the_same_in_capitals(tmp_path: Path, name: str) -> None:
    plain = opened(write_npz(tmp_path / "a.npz"))
    assert torch.equal(opened((tmp_path / "a.npz").rename(tmp_path / name)).data.x, plain.data.x)
