"""Whose data are in a folder."""

import unicodedata
from pathlib import Path

import pytest

from disue.data.rehearsal import clients_below
from disue.errors import DataError


def test_each_folder_and_each_file_is_a_client_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("ward-10", "ward-2", ".cache"):
        (tmp_path / name).mkdir()
    for name in ("lab.v2.npz", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "ward-2")
    found = clients_below(str(tmp_path))
    assert list(found) == ["lab.v2", "linked", "ward-2", "ward-10"]
    assert found["lab.v2"] == tmp_path / "lab.v2.npz"


def test_a_name_is_in_the_form_in_which_names_are_compared(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "Köln")
    (tmp_path / name).mkdir()
    assert clients_below(str(tmp_path)) == {"Köln": tmp_path / name}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "is empty; expected a folder or an .npz file for each client"),
        (["a.npz", "notes.txt", "b.zip"], "has 'b.zip', 'notes.txt'; expected"),
        (["a.npz", "a/"], "'a', 'a.npz' in '{}' are of one client; keep one of them"),
        (["a\u200b.npz"], "can be no client's name"),
        (["a" * 101 + ".npz"], "can be no client's name"),
    ],
)
def test_what_cannot_be_clients_is_one_line(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        clients_below(str(tmp_path))
    assert str(caught.value).startswith("own-data: ")
    assert words.format(tmp_path) in str(caught.value)


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(DataError, match=f"own-data: '.*{name}' cannot be read .{why}."):
            clients_below(str(tmp_path / name))
