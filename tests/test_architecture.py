"""docs/ARCHITECTURE.md and its picture say what the code has: rooms, steps, and what is large."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import draw_house
import pytest
from house import House, Room, house_of, read_house

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
FLOORS = ("disue", "client_app", "strategies", "server_app", "disue_cli")
MOST_LINES, MOST_ATTRIBUTES, MOST_PARAMETERS = 300, 12, 8


@cache
def house() -> House:
    return read_house()


def rows(head: str) -> list[list[str]]:
    """Return the cells of all tables of the page that begin with these words."""
    found = re.findall(rf"^\| {re.escape(head)}.*\n\| ---.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    assert found, head
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in found for line in table.splitlines()]


def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


# --- the picture ------------------------------------------------------------------------------------


def test_the_picture_is_drawn_from_the_imports() -> None:
    assert draw_house.PICTURE.read_text() == draw_house.svg_of(house()), "run: python docs/draw_house.py"


def test_every_arrow_of_the_picture_points_down() -> None:
    plan = draw_house.plan_of(house())
    assert all(upper.row > lower.row for way in plan.arrows for upper, lower in pairwise(way))
    for spots in plan.rows:
        for left, right in pairwise(spots):
            assert left.x + left.width / 2 < right.x - right.width / 2


def test_every_import_between_rooms_is_an_arrow_or_follows_from_arrows() -> None:
    kept = draw_house.without_detours(house().arrows)

    def reached(room: Room) -> set[Room]:
        return set(kept[room]).union(*(reached(lower) for lower in kept[room]))

    for room, below in house().arrows.items():
        assert below <= reached(room)
        assert all(lower not in reached(other) for lower in kept[room] for other in kept[room])


STOREYS = [["top"], ["left", "right"], ["ground"]]


@pytest.mark.parametrize(
    ("imports", "named"),
    [
        ([("ground.a", "top.b")], "an import leads up: ground.a imports top.b"),
        ([("left.a", "right.b")], "an import leads up: left.a imports right.b"),
        (
            [("ground.one.a", "ground.two.b"), ("ground.two.c", "ground.one.d"), ("top.x", "ground.one.a")],
            "rooms import each other in a circle: ground.one.a imports ground.two.b\n"
            "rooms import each other in a circle: ground.two.c imports ground.one.d",
        ),
        (
            [("ground.a", "ground.one.b"), ("ground.one.c", "ground.a")],
            "rooms import each other in a circle: ground.a imports ground.one.b\n"
            "rooms import each other in a circle: ground.one.c imports ground.a",
        ),
    ],
)
def test_an_import_that_does_not_lead_down_is_named(
    imports: list[tuple[str, str]],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(draw_house, "read_house", lambda: house_of(STOREYS, imports))
    monkeypatch.setattr(draw_house, "PICTURE", tmp_path / "house.svg")
    assert draw_house.main() == 1
    assert capsys.readouterr().err == named + "\n"
    assert not (tmp_path / "house.svg").exists()


def test_single_files_that_stand_on_the_same_folders_are_one_room() -> None:
    imports = [
        ("ground.b", "ground.one.x"),
        ("ground.c", "ground.b"),
        ("ground.one.x", "ground.a"),
        ("top.t", "ground.c"),
    ]
    low, folder, high = Room("ground", "", ("a",)), Room("ground", "one"), Room("ground", "", ("b", "c"))
    assert house_of(STOREYS, imports).arrows == {
        Room("top", "", ("t",)): {high},
        high: {folder},
        folder: {low},
        low: frozenset(),
    }


# --- the page: rooms and steps ----------------------------------------------------------------------


def test_the_page_lists_every_floor_and_every_room() -> None:
    listed: dict[str, set[str]] = {}
    own = ""
    for floor, room, _ in rows("floor | room"):
        own = floor.strip("`") or own
        listed.setdefault(own, set()).add(room.strip("`/"))
    there = {floor: {path.parent.name for path in (ROOT / floor).glob("*/__init__.py")} for floor in FLOORS}
    assert listed == {floor: folders | {"single files"} for floor, folders in there.items()}
    assert {package.strip("`") for _, package, _ in rows("floor | package")} == set(FLOORS)


def defined(file: str, name: str) -> bool:
    """Return whether a file has a function, a class, or a method of a class."""
    body: list[ast.stmt] = parsed(file).body
    for word in name.split("."):
        named = [own for own in body if isinstance(own, ast.FunctionDef | ast.ClassDef) and own.name == word]
        if not named:
            return False
        body = named[0].body
    return True


def steps() -> dict[int, tuple[str, str, int | None]]:
    """Return the function, the file and the caller of each step of an update."""
    return {
        int(number): (function.strip("`"), file.strip("`"), int(caller) if caller else None)
        for number, function, file, _, caller in rows("step | function")
    }


def room_of(file: str) -> Room:
    floor, place, *_ = Path(file).with_suffix("").parts
    (found,) = (
        room for room in house().arrows if room.floor == floor and (room.folder == place or place in room.files)
    )
    return found


def test_every_function_on_the_way_of_an_update_is_where_the_page_says() -> None:
    assert list(steps()) == list(range(1, len(steps()) + 1))
    assert [own for own in steps().values() if not defined(own[1], own[0])] == []


def test_no_step_of_an_update_calls_one_above() -> None:
    below = house().arrows

    def reached(room: Room) -> set[Room]:
        return {room}.union(*(reached(lower) for lower in below[room]))

    for number, (function, file, caller) in steps().items():
        if caller is not None:
            assert caller < number
            assert room_of(file) in reached(room_of(steps()[caller][1])), f"{function} is above step {caller}"


def test_every_name_that_the_page_says_is_in_a_file_is_there() -> None:
    told = re.findall(r"`([\w.]+)` in `([\w/]+\.py)`", PAGE.read_text())
    assert len(told) > 15
    assert [own for own in told if not defined(own[1], own[0])] == []


# --- the page: what is large ------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A class, and the file that it is in."""

    file: str
    node: ast.ClassDef


@cache
def classes() -> dict[str, list[Written]]:
    found: dict[str, list[Written]] = {}
    for file in files():
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(Written(file, node))
    return found


def files() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def lineage(own: Written) -> Iterator[Written]:
    """Yield a class and those of ours that it inherits from; of two of a name, that of its own file."""
    yield own
    for base in own.node.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        named = sorted(classes().get(name, []), key=lambda other: other.file != own.file)
        yield from lineage(named[0]) if named else ()


def fields(node: ast.ClassDef) -> set[str]:
    """Return what is annotated in the body of a class, but what belongs to the class alone."""
    return {
        own.target.id
        for own in node.body
        if isinstance(own, ast.AnnAssign)
        and isinstance(own.target, ast.Name)
        and "ClassVar" not in ast.unparse(own.annotation)
    }


def attributes(own: Written) -> set[str]:
    """Return the names that are annotated or assigned in the body, and those that a method sets on `self`.

    Inherited ones count, and so do those of the class alone: settings and dataclasses are tables of such names.
    """
    found = set[str]()
    for written in lineage(own):
        for node in written.node.body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
        found |= {
            node.attr
            for node in ast.walk(written.node)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
    return found


def parameters(own: Written) -> int:
    """Return how many parameters the constructor has: of `__init__` without `self`, or else a field each."""
    for written in lineage(own):
        for node in written.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
    return len(set[str]().union(*(fields(written.node) for written in lineage(own))))


def named(head: str) -> list[str]:
    return sorted(first.replace("`", "") for first, _ in rows(head))


def test_the_page_says_of_every_large_file_why_it_is_one_thing() -> None:
    large = [file for file in files() if len((ROOT / file).read_text().splitlines()) > MOST_LINES]
    assert named("file over 300 lines") == sorted(large)


def test_the_page_says_of_every_class_with_many_attributes_why_it_is_one_thing() -> None:
    every = [(name, own) for name, several in classes().items() for own in several]
    large = [f"{name} in {own.file}" for name, own in every if len(attributes(own)) > MOST_ATTRIBUTES]
    assert named("class over 12 attributes") == sorted(large)


def test_the_page_says_of_every_long_constructor_why_it_is_one_thing() -> None:
    every = [(name, own) for name, several in classes().items() for own in several]
    large = [f"{name} in {own.file}" for name, own in every if parameters(own) > MOST_PARAMETERS]
    assert named("constructor over 8 parameters") == sorted(large)
