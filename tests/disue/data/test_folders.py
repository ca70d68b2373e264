"""Which images are found below a folder, by each who reads one; what is left out is named."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from disue.data import load_dataset
from disue.data.folders import SUFFIXES, images_below, search
from disue.data.image_files import FORMATS
from disue.data.inputs import read_inputs
from disue.data.own import read_own
from disue.errors import LOGGER, DataError
from server_app.config import RunConfig
from strategies.distillation.proxy import load_proxy

SHAPE = (1, 8, 8)


def write(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in SUFFIXES:
            Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path, format="PNG")
        else:
            path.write_bytes(b"no picture")
    return root


def found_in(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in images_below(root)]


def as_data_path(folder: Path) -> int:
    return len(read_own(folder, SHAPE).y)


def as_inputs(folder: Path) -> int:
    return len(read_inputs([folder], SHAPE).names)


def as_proxy(folder: Path) -> int:
    data = SimpleNamespace(task=load_dataset("digits").task)
    return len(load_proxy(RunConfig(proxy=f"path:{folder}"), data))


def test_the_endings_are_those_of_the_formats_that_are_read() -> None:
    Image.init()
    assert {end for end, form in Image.registered_extensions().items() if form in FORMATS} == SUFFIXES


@pytest.mark.parametrize("reader", [as_data_path, as_inputs, as_proxy])
def test_whoever_reads_a_folder_follows_its_links_and_says_what_is_left_out(
    tmp_path: Path, reader: Callable[[Path], int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "data", *(f"cat/{i}.png" for i in range(8)), "cat/a.heic", "cat/b.HEIC", "cat/.c.png")
    write(tmp_path / "elsewhere", "dog/1.jfif", "dog/2.tif", "dog/notes.txt")
    (folder / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (folder / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "cat" / "linked.png").symlink_to(folder / "cat" / "1.png")
    write(folder, "Thumbs.db")
    with caplog.at_level(logging.WARNING, LOGGER):
        assert reader(folder) == 8 + 2 + 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"'{folder}': left out: files with the ending .heic (2: 'cat/a.heic', 'cat/b.HEIC'); "
        "files with the ending .txt (1: 'dog/notes.txt'); hidden (1: 'cat/.c.png'); "
        "what cannot be opened, no such file or directory (1: 'cat/gone.png')"
    )


@pytest.mark.parametrize("reader", [as_data_path, as_inputs, as_proxy])
def test_nothing_is_said_where_nothing_is_left_out_and_an_error_says_it_too(
    tmp_path: Path, reader: Callable[[Path], int], caplog: pytest.LogCaptureFixture
) -> None:
    assert reader(write(tmp_path / "all", *(f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(10)))) == 10
    assert not caplog.records
    with pytest.raises(DataError, match="left out: files with the ending .heic .12: 'cat/0.heic', .* and 9 more"):
        reader(write(tmp_path / "none", *(f"cat/{i}.heic" for i in range(12))))


def test_links_that_go_round_are_followed_once(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "far-up").symlink_to("/")
    (root / "a" / "other").symlink_to("../b")
    (root / "again").symlink_to(root / "b")
    out = write(tmp_path / "out", "3.png", "deep/4.png")
    (root / "c").symlink_to(out)
    (out / "back").symlink_to(root)
    (out / "deep" / "up").symlink_to(out)
    found = search(root)
    assert [path.relative_to(root).as_posix() for path in found.paths] == [
        "a/1.png",
        "b/2.png",
        "c/3.png",
        "c/deep/4.png",
    ]
    assert {reason: sorted(names) for reason, names in found.left_out.items()} == {
        "links to a folder around them": ["a/far-up", "a/up", "c/back", "c/deep/up"],
        "folders that are read already": ["a/other", "again"],
        "what cannot be opened, too many levels of symbolic links": ["a/self"],
    }


def test_many_folders_that_are_linked_crosswise_are_read_once_each(tmp_path: Path) -> None:
    names = [f"f{i:02}" for i in range(12)]
    write(tmp_path, *(f"{name}/1.png" for name in names))
    for name in names:
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    assert found_in(tmp_path) == [f"{name}/1.png" for name in names]


@pytest.mark.parametrize("outer", ["archive", "zarchive"])
def test_a_folder_in_two_classes_is_refused_whatever_its_links_are_called(tmp_path: Path, outer: str) -> None:
    write(tmp_path / "store", *(f"healthy/{i}.png" for i in range(4)))
    data = write(tmp_path / "data", "ill/1.png")
    (data / outer).symlink_to(tmp_path / "store")
    (data / "healthy").symlink_to(tmp_path / "store" / "healthy")
    names = ", ".join(sorted([f"'{outer}/healthy'", "'healthy'"]))
    with pytest.raises(DataError, match=f"^{names} are the same folder, in two classes; remove one of the links$"):
        as_data_path(data)
    assert as_inputs(data) == 5  # where there are no classes


def test_a_folder_twice_in_one_class_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "store", "1.png")
    data = write(tmp_path / "data", "ill/2.png", "well/3.png")
    (data / "ill" / "a").symlink_to(tmp_path / "store")
    (data / "ill" / "b").symlink_to(tmp_path / "store")
    assert as_data_path(data) == 3
    (data / "well" / "ill").symlink_to(data / "ill")
    with pytest.raises(DataError, match="^'ill', 'well/ill' are the same folder"):
        as_data_path(data)


@pytest.mark.parametrize("reader", [as_data_path, as_inputs, as_proxy])
def test_folders_without_images_are_named(
    tmp_path: Path, reader: Callable[[Path], int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, *(f"cat/{i}.png" for i in range(10)), "mice/deep/.DS_Store")
    for name in ("dog", "cat/z.png", "mice/deep/deeper"):
        (folder / name).mkdir(parents=True)
    assert reader(folder) == 10
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"'{folder}': left out: folders without images (3: 'cat/z.png', 'dog', 'mice')"


def test_pipes_and_sockets_are_named_and_a_folder_may_be_called_like_an_image(tmp_path: Path) -> None:
    write(tmp_path, "a.png/1.png", "READMEe")
    os.mkfifo(tmp_path / "pipe.png")
    found = search(tmp_path)
    assert found_in(tmp_path) == ["a.png/1.png"]
    assert found.left_out == {"what is no file": ["pipe.png"], "files without an ending": ["READMEe"]}


def test_a_name_cannot_spoil_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "x/1.png", "x/\x1b[2J\n.heic", *(f"x/{i}.kind-{i}" for i in range(300)))
    assert as_inputs(tmp_path) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.isprintable()
    assert said.endswith("; others for 293 further reasons (293)")
    assert len(said) < 1000


def test_arrays_of_other_names_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = np.zeros((4, 8, 8), dtype=np.uint8), np.array([0, 0, 1, 1])
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x, y_test=y, classes=np.array(["a", "b"]))
    assert as_data_path(tmp_path / "a.npz") == as_inputs(tmp_path / "a.npz") == 4
    assert [record.getMessage() for record in caplog.records] == [
        "'a.npz': left out: arrays of other names ('x_test', 'y_test')",
        f"'{tmp_path / 'a.npz'}': left out: arrays of other names ('x_test', 'y_test')",
    ]
