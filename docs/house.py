"""The floors and rooms of the house, and which room imports which, as the imports have it.

A folder is a room. The single files of a floor that stand on the same folders are one room together. The floors are
those of the first import rule in ``pyproject.toml``.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
Import = tuple[str, str]
"""A module, and one that it imports."""


class ClimbError(Exception):
    """Imports that do not lead down."""

    def __init__(self, why: str, imports: Iterable[Import]) -> None:
        super().__init__("\n".join(f"{why}: {importer} imports {imported}" for importer, imported in imports))


@dataclass(frozen=True, order=True)
class Room:
    """A folder of a floor, or some of its single files."""

    floor: str
    folder: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.floor}/{self.folder or ', '.join(self.files)}"


@dataclass(frozen=True)
class House:
    """What is drawn.

    Attributes
    ----------
    storeys : sequence of sequences of str
        The floors, the uppermost first; those beside each other know nothing of each other.
    arrows : mapping of Room to rooms
        What each room imports. The mapping holds every room.
    """

    storeys: Sequence[Sequence[str]]
    arrows: Mapping[Room, frozenset[Room]]


def read_house() -> House:
    """Return the house as its imports have it, without those that a rule names as exceptions; see `house_of`."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    storeys = [[name.strip() for name in layer.split("|")] for layer in rules[0]["layers"]]
    exceptions = {tuple(told.split(" -> ")) for rule in rules for told in rule.get("ignore_imports", ())}
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*(floor for storey in storeys for floor in storey), cache_dir=None)
    found = [(own, other) for own in graph.modules for other in graph.find_modules_directly_imported_by(own)]
    return house_of(storeys, sorted(set(found) - exceptions))


def house_of(storeys: Sequence[Sequence[str]], imports: Sequence[Import]) -> House:
    """Return the house of some imports; raise `ClimbError` if one leads up, or some go round in a circle."""
    height = {floor: -number for number, storey in enumerate(storeys) for floor in storey}
    floors = [(module_floor(upper), module_floor(lower)) for upper, lower in imports]
    ends = zip(floors, imports, strict=True)
    if up := [own for (upper, lower), own in ends if upper != lower and height[upper] <= height[lower]]:
        raise ClimbError("an import leads up", up)
    room_of = _rooms(imports)
    arrows: dict[Room, set[Room]] = {room: set() for room in sorted(set(room_of.values()))}
    for upper, lower in imports:
        arrows[room_of[upper]] |= {room_of[lower]} - {room_of[upper]}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        circle = set(error.args[1])
        between = [(room_of[upper], room_of[lower]) for upper, lower in imports]
        pairs = zip(between, imports, strict=True)
        round_about = [own for (upper, lower), own in pairs if upper != lower and {upper, lower} <= circle]
        raise ClimbError("rooms import each other in a circle", round_about) from None
    return House(storeys, {room: frozenset(lower) for room, lower in arrows.items()})


def _rooms(imports: Sequence[Import]) -> dict[str, Room]:
    """Return the room of each module that imports or is imported."""
    modules = sorted({module for own in imports for module in own})
    folders = {".".join(own.split(".")[:2]) for own in modules if own.count(".") > 1}
    places = {module: ".".join(module.split(".")[:2]) for module in modules}
    below: dict[str, set[str]] = {}
    for upper, lower in imports:
        if module_floor(upper) == module_floor(lower):
            below.setdefault(places[upper], set()).add(places[lower])
    alike: dict[tuple[str, frozenset[str]], list[str]] = {}
    for place in sorted(set(places.values()) - folders):
        alike.setdefault((module_floor(place), frozenset(_reached(place, below) & folders)), []).append(place)
    room_of_place = {place: Room(*place.split(".")) for place in folders}
    for (floor, _), files in alike.items():
        names = tuple(file.partition(".")[2] or "__init__" for file in files)
        room_of_place |= dict.fromkeys(files, Room(floor, "", names))
    return {module: room_of_place[place] for module, place in places.items()}


def module_floor(module: str) -> str:
    """Return the package that a module is in."""
    return module.split(".")[0]


def _reached(start: str, below: Mapping[str, Iterable[str]]) -> set[str]:
    reached, ahead = set[str](), [start]
    while ahead:
        new = set(below.get(ahead.pop(), ())) - reached
        reached |= new
        ahead += new
    return reached


def without_detours(arrows: Mapping[Room, frozenset[Room]]) -> dict[Room, list[Room]]:
    """Return the arrows that do not follow from others."""
    reached: dict[Room, frozenset[Room]] = {}
    for room in TopologicalSorter(arrows).static_order():
        reached[room] = arrows[room].union(*(reached[lower] for lower in arrows[room]))
    return {
        room: sorted(lower for lower in own if not any(lower in reached[other] for other in own))
        for room, own in arrows.items()
    }
