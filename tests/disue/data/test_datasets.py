"""The loaders on small files of the same formats, made here; downloads are checked as far as the error."""

import gzip
import hashlib
import math
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from disue.data import datasets
from disue.data.datasets import DATASETS, load_dataset, missing_from
from disue.data.idx import read_idx
from disue.errors import ConfigError, DataError
from disue.torchvision_compat import torchvision

TRAIN_X = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
TEST_X = TRAIN_X[:2][:, ::-1]


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_files(directory: Path, gzipped: bool) -> None:
    arrays = {
        "train-images-idx3-ubyte": TRAIN_X,
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 3, 9], dtype=np.uint8),
        "t10k-images-idx3-ubyte": TEST_X,
        "t10k-labels-idx1-ubyte": np.array([4, 5], dtype=np.uint8),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(np.ascontiguousarray(array))
        path = directory / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(content) if gzipped else content)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("torchvision_layout", [True, False])
def test_idx_files_plain_and_gzipped(tmp_path: Path, name: str, gzipped: bool, torchvision_layout: bool) -> None:
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    write_idx_files(tmp_path / folder / "raw" if torchvision_layout else tmp_path, gzipped)
    assert missing_from(name, str(tmp_path)) == []
    dataset = load_dataset(name, str(tmp_path))
    assert dataset.shape == (1, 28, 28)
    assert torch.equal(dataset.train.x[:, 0], torch.from_numpy(TRAIN_X))
    assert torch.equal(dataset.test.x[:, 0], torch.from_numpy(TEST_X.copy()))
    assert dataset.train.y.tolist() == [0, 1, 2, 3, 9]
    assert len(dataset.class_names) == 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01....", "not an idx file of unsigned bytes"),
        (idx_bytes(TRAIN_X)[:-1], "damaged"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "damaged"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 3, 10]])
def test_labels_that_do_not_fit_the_images_are_named(tmp_path: Path, labels: list[int]) -> None:
    write_idx_files(tmp_path, gzipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.array(labels, dtype=np.uint8)))
    with pytest.raises(DataError, match="mnist: the train files do not fit: 5 images"):
        load_dataset("mnist", str(tmp_path))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx_bytes(TRAIN_X))[:40])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)


def _register_md5(
    monkeypatch: pytest.MonkeyPatch, dataset_class: type, lists: dict[str, list[Path]], meta: Path, key: str
) -> None:
    def sums(paths: list[Path]) -> list[list[str]]:
        return [[path.name, hashlib.md5(path.read_bytes()).hexdigest()] for path in paths]

    for attribute, paths in lists.items():
        monkeypatch.setattr(dataset_class, attribute, sums(paths))
    monkeypatch.setattr(
        dataset_class,
        "meta",
        {"filename": meta.name, "key": key, "md5": hashlib.md5(meta.read_bytes()).hexdigest()},
    )


@pytest.mark.parametrize(
    ("name", "class_name", "folder", "label_key", "meta_key"),
    [
        ("cifar10", "CIFAR10", "cifar-10-batches-py", "labels", "label_names"),
        ("cifar100", "CIFAR100", "cifar-100-python", "fine_labels", "fine_label_names"),
    ],
)
def test_cifar_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    class_name: str,
    folder: str,
    label_key: str,
    meta_key: str,
) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    for part in ("train_part", "test_part"):
        (directory / part).write_bytes(pickle.dumps({"data": images.reshape(3, -1), label_key: [2, 0, 1]}))
    (directory / "meta").write_bytes(pickle.dumps({meta_key: ["a", "b", "c"]}))
    dataset_class = getattr(torchvision().datasets, class_name)
    lists = {"train_list": [directory / "train_part"], "test_list": [directory / "test_part"]}
    _register_md5(monkeypatch, dataset_class, lists, directory / "meta", meta_key)

    assert missing_from(name, str(tmp_path)) == []
    dataset = load_dataset(name, str(tmp_path))
    assert dataset.shape == (3, 32, 32)
    assert torch.equal(dataset.train.x, torch.from_numpy(images))
    assert dataset.test.y.tolist() == [2, 0, 1]
    assert dataset.class_names == ("a", "b", "c")
    (directory / "test_part").write_bytes(b"damaged")
    assert missing_from(name, str(tmp_path)) == [tmp_path]


def test_svhn_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    split_list = {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        scipy.io.savemat(path, {"X": images, "y": np.array([[1], [10], [2], [3]], dtype=np.uint8)})
        split_list[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision().datasets.SVHN, "split_list", split_list)

    assert missing_from("svhn", str(tmp_path)) == []
    dataset = load_dataset("svhn", str(tmp_path))
    assert dataset.shape == (3, 32, 32)
    assert torch.equal(dataset.train.x, torch.from_numpy(images.transpose(3, 2, 0, 1).copy()))
    assert dataset.train.y.tolist() == [1, 0, 2, 3]  # SVHN writes the digit 0 as 10
    (tmp_path / "test_32x32.mat").unlink()
    assert missing_from("svhn", str(tmp_path)) == [tmp_path]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_no_files_and_no_network_is_one_line_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(DataError) as caught:
        load_dataset(name, str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    for word in (name, str(tmp_path), "download failed", "put ", "data-dir"):
        assert word in message


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_that_files_are_missing_is_seen_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    places = missing_from(name, str(tmp_path))
    assert places
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_no_files_misses_none() -> None:
    assert missing_from("digits") == []
    with pytest.raises(ConfigError, match=r"dataset: 'digit' does not exist \(did you mean 'digits'\?\)"):
        missing_from("digit")
    with pytest.raises(DataError, match="data-dir: '/no/such/place' is not a directory"):
        missing_from("mnist", "/no/such/place")


def test_a_missing_directory_and_an_unknown_dataset_are_named() -> None:
    with pytest.raises(DataError, match="data-dir: '/no/such/place' is not a directory"):
        load_dataset("mnist", "/no/such/place")
    with pytest.raises(DataError, match="data-dir: '~nobody-here' cannot be used"):
        load_dataset("mnist", "~nobody-here")
    with pytest.raises(ConfigError, match=r"dataset: 'digit' does not exist \(did you mean 'digits'\?\)"):
        load_dataset("digit")


def test_digits_are_all_there_and_normalised() -> None:
    dataset = load_dataset("digits")
    assert len(dataset.train) + len(dataset.test) == 1797
    x = dataset.normalise(dataset.train.x)
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1.0) < 0.02


def test_fashion_mnist_constants_fit_the_real_files() -> None:
    place = Path("/usr/share/datasets/fashion-mnist")
    if not place.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    dataset = load_dataset("fashion-mnist")
    assert (len(dataset.train), len(dataset.test)) == (60000, 10000)
    x = dataset.normalise(dataset.train.x)
    assert abs(float(x.mean())) < 0.001
    assert abs(float(x.std()) - 1.0) < 0.001


def test_every_dataset_of_the_design_is_registered() -> None:
    assert set(DATASETS) == {"own", "digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "svhn"}
    assert datasets.DATASETS.key == "dataset"


def idx_file(path: Path, sizes: list[int], content: bytes) -> None:
    head = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    path.write_bytes(head + content)


@pytest.mark.parametrize(
    ("sizes", "content", "words"),
    [
        ([2**31, 2**31, 2**31], b"", "at most 1073741824 bytes are read"),
        ([0, 2**32 - 1, 2**32 - 1, 2**32 - 1], b"", "at most 1073741824 bytes are read"),
        ([0, 3584649, 3586081, 3587509], b"", "at most 1073741824 bytes are read"),
        ([4], b"abc", "the header says 4 bytes, 3 follow"),
        ([4], b"abcde", "the header says 4 bytes, more follow"),
        ([], b"", "the header is cut short"),
    ],
)
def test_an_idx_file_that_says_other_than_it_holds_is_refused(
    tmp_path: Path, sizes: list[int], content: bytes, words: str
) -> None:
    idx_file(tmp_path / "a", sizes, content)
    with pytest.raises(DataError, match=words):
        read_idx(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("train-images-idx3-ubyte", [3, 12], r"has \(3, 12\); expected images"),
        ("train-images-idx3-ubyte", [3, 3, 4], "expected images of at least 4 pixels a side"),
        ("train-images-idx3-ubyte", [0, 4, 4], "expected images"),
        ("t10k-images-idx3-ubyte", [3, 4, 6], r"train images are \(4, 4\), test images \(4, 6\)"),
        ("train-labels-idx1-ubyte", [3, 1], r"has \(3, 1\); expected labels"),
        ("train-labels-idx1-ubyte", [0], r"has \(0,\); expected labels"),
    ],
)
def test_idx_files_of_other_forms_are_refused(tmp_path: Path, name: str, sizes: list[int], words: str) -> None:
    for other, usual in (
        ("train-images-idx3-ubyte", [3, 4, 4]),
        ("t10k-images-idx3-ubyte", [3, 4, 4]),
        ("train-labels-idx1-ubyte", [3]),
        ("t10k-labels-idx1-ubyte", [3]),
    ):
        chosen = sizes if other == name else usual
        idx_file(tmp_path / other, chosen, bytes(math.prod(chosen)))
    with pytest.raises(DataError, match=words):
        load_dataset("mnist", str(tmp_path))
