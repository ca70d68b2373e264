"""The hash of the source code: what computes counts, on every version of Python; what people read does not."""

from pathlib import Path

import pytest

from disue.source import hash_of, source_hash

CODE = '''"""A module."""

import math  # for pi

LIMIT = 3
"""Of something."""


class Box:
    """Holds a value."""

    size: int = Field(1, ge=0, description="how large it is")

    def area(self, x: float = 1.5, *rest: int) -> str:
        """Return it."""
        # Why it is so.
        return f"{self.size!r:>{LIMIT}} {x=} {{}} {math.pi * x:.2f}" "and more" rf"\\{x}"


async def most(values, /, *, key=None, **others):
    match values:
        case [None, *_] | {"a": 1, **rest}:
            return b"\\x00", 1_000, 2.5e-3, 1j, ..., -0.0, "\\U0001fae8\\ud800"
        case _ if key:
            return [*values, *(v async for v in values if v)], values[1:, ::2], {**others}
    async with values as (a, b):
        global LIMIT
        del values[0]
    try:
        x: int = (y := 1)
    except* (ValueError, TypeError) as error:
        raise error from None
'''
HASH = "7cdc2bc1a51de00c"
"""Of `CODE`, the same on all versions of Python."""


def told(place: Path, code: str = CODE, name: str = "box.py") -> str:
    """Return the hash of a package with one file, which is made in a new folder."""
    root = place / str(len(list(place.iterdir())))
    (root / "pack").mkdir(parents=True)
    (root / "pack" / name).write_text(code, encoding="utf-8")
    return hash_of(root, ("pack",))


def test_it_is_the_same_on_every_version_of_python(tmp_path: Path) -> None:
    """Sites may have different ones. A change of what is hashed changes the number on purpose."""
    assert told(tmp_path) == HASH


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A module."""', '"""Another word."""'),
        ('"""A module."""\n', ""),
        ('"""Of something."""\n', ""),
        ('    """Holds a value."""\n', "    # A comment.\n"),
        ('        """Return it."""\n', '        """Return it.\n\n        All of it.\n        """\n'),
        ("  # for pi", ""),
        ("        # Why it is so.\n", "\n\n"),
        ('description="how large it is"', "description='how large it may\\n be'"),
        (', description="how large it is"', ""),
        ("LIMIT = 3", "LIMIT = (\n    3\n)"),
        ("1_000", "1000"),
    ],
)
def test_comments_docstrings_help_and_layout_do_not_count(tmp_path: Path, before: str, after: str) -> None:
    assert CODE.count(before) == 1
    assert told(tmp_path, CODE.replace(before, after)) == told(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("LIMIT = 3", "LIMIT = 3.0"),
        ("LIMIT = 3", "LIMIT = '3'"),
        ("LIMIT = 3", "LIMIT: int = 3"),
        ("ge=0", "gt=0"),
        ("ge=0, ", ""),
        (":.2f", ":.3f"),
        ("{x=}", "{x}"),
        ("self.size!r", "self.size!s"),
        ("-0.0", "0.0"),
        ("values, /, *, key=None", "values, *, key=None"),
        ("key=None", "key=0"),
        ("return b", "yield b"),
        ("case [None, *_]", "case [True, *_]"),
        ("values[1:, ::2]", "values[:1, ::2]"),
        ("        global LIMIT\n", ""),
        ("from None", ""),
        ("{**others}", "{None: others}"),
        ("            return b", "            pass\n            return b"),
        ('description="how large it is"', "description=how"),
    ],
)
def test_all_else_counts(tmp_path: Path, before: str, after: str) -> None:
    assert CODE.count(before) == 1
    assert told(tmp_path, CODE.replace(before, after)) != told(tmp_path)


def test_the_name_of_a_file_counts_and_a_file_that_is_no_python_has_a_hash_too(tmp_path: Path) -> None:
    assert len({told(tmp_path), told(tmp_path, CODE, "b.py"), told(tmp_path, "("), told(tmp_path, "((")}) == 4


def test_each_set_of_packages_has_a_hash_of_its_own() -> None:
    assert len({source_hash(), source_hash(("disue",)), source_hash(("disue", "client_app"))}) == 3


def test_a_description_that_is_no_help_counts(tmp_path: Path) -> None:
    hashes = set[str]()
    for number, text in enumerate(("a", "b")):
        package = tmp_path / str(number) / "disue"
        package.mkdir(parents=True)
        (package / "needs.py").write_text(f'NEEDS = Needs(description="{text}")\n')
        hashes.add(hash_of(tmp_path / str(number), ("disue",)))
    assert len(hashes) == 2
