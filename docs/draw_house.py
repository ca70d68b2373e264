"""Draws ``docs/house.svg``: the floors, the rooms on them, and which room imports which (`house`).

    python docs/draw_house.py

An arrow that follows from others is left out. If an import leads up, or rooms import each other in a circle, nothing is
drawn: each such import is named, and the exit status is 1.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from textwrap import wrap

from house import ClimbError, House, Room, read_house, without_detours

PICTURE = Path(__file__).with_name("house.svg")
LINE, PAD, GAP, BETWEEN_ROWS, MARGIN, TITLE = 15, 9, 16, 36, 14, 24
"""Pixels: a line of text, around the text of a room, between rooms, between rows, around a floor, its title."""
LETTER, HEAD_LETTER, LETTERS = 6.2, 7.9, 30
"""Pixels of a letter in a list of files, and in the name of a folder; letters in a line."""
SWEEPS = 60
TINTS = ("#eef3fb", "#f3eefb", "#edf7ef", "#fbf3ea", "#f6f3ee")


# --- where everything is ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Spot:
    """A room, or a place where an arrow passes a row of a floor; ``x`` is its middle."""

    row: int
    floor: str
    name: str
    room: Room | None = None
    x: float = 0.0
    near: list["Spot"] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The text in it."""
        if self.room is None:
            return []
        return [f"{self.room.folder}/"] if self.room.folder else wrap(", ".join(self.room.files), LETTERS)

    @property
    def width(self) -> float:
        """Pixels."""
        if self.room is None:
            return 4.0
        letter = HEAD_LETTER if self.room.folder else LETTER
        return max(44.0, letter * max(map(len, self.lines)) + 2 * PAD)

    @property
    def height(self) -> float:
        """Pixels."""
        return LINE * len(self.lines) + 2 * PAD - 4 if self.room else 0.0


@dataclass(frozen=True)
class Plan:
    """Where everything is: the rows from the lowest, the arrows as the spots they pass, and the ends of each floor."""

    rows: list[list[Spot]]
    arrows: list[list[Spot]]
    ends: Mapping[str, tuple[float, float]]
    rows_of: Mapping[str, range]


def plan_of(house: House) -> Plan:
    """Return where rooms and arrows are, with few arrows that cross."""
    rows_of, level = _levels(house)
    spots = {room: Spot(level[room], room.floor, str(room), room) for room in house.arrows}
    rows: list[list[Spot]] = [[] for _ in range(max(level.values()) + 1)]
    arrows: list[list[Spot]] = []
    for spot in spots.values():
        rows[spot.row].append(spot)
    for room, below in without_detours(house.arrows).items():
        for lower in below:
            passed = [spots[room]]
            for row in range(level[room] - 1, level[lower], -1):
                floors = (room.floor, lower.floor, *rows_of)
                floor = next(floor for floor in floors if row in rows_of[floor])
                passed.append(Spot(row, floor, f"{room} > {lower}"))
                rows[row].append(passed[-1])
            passed.append(spots[lower])
            arrows.append(passed)
            for one, two in pairwise(passed):
                one.near.append(two)
                two.near.append(one)
    ends = _ends(house, rows)
    _arrange(rows, ends)
    return Plan(rows, arrows, ends, rows_of)


def _levels(house: House) -> tuple[dict[str, range], dict[Room, int]]:
    """Return the rows of each floor, and the row of each room: above all that it imports."""
    depth: dict[Room, int] = {}
    for room in TopologicalSorter(house.arrows).static_order():
        below = [lower for lower in house.arrows[room] if lower.floor == room.floor]
        depth[room] = 1 + max((depth[lower] for lower in below), default=-1)
    rows_of: dict[str, range] = {}
    ground = 0
    for storey in reversed(house.storeys):
        top = ground + 1 + max(own for room, own in depth.items() if room.floor in storey)
        rows_of |= dict.fromkeys(storey, range(ground, top))
        ground = top
    return rows_of, {room: rows_of[room.floor].start + own for room, own in depth.items()}


def _taken(spots: Iterable[Spot]) -> float:
    return sum(spot.width + GAP for spot in spots)


def _ends(house: House, rows: Sequence[Sequence[Spot]]) -> dict[str, tuple[float, float]]:
    """Return the left and the right end of each floor; those beside each other share the width."""
    needed = {
        floor: 2 * MARGIN + max(_taken(spot for spot in row if spot.floor == floor) for row in rows)
        for storey in house.storeys
        for floor in storey
    }
    widest = max(sum(needed[floor] for floor in storey) for storey in house.storeys)
    ends: dict[str, tuple[float, float]] = {}
    for storey in house.storeys:
        left, spare = 0.0, (widest - sum(needed[floor] for floor in storey)) / len(storey)
        for floor in storey:
            ends[floor] = left, left + needed[floor] + spare
            left = ends[floor][1]
    return ends


def _arrange(rows: list[list[Spot]], ends: Mapping[str, tuple[float, float]]) -> None:
    """Move everything near to what it is joined with; of all that was tried, keep what has the fewest crossings."""
    best: tuple[tuple[int, float], list[float]] | None = None
    spots = [spot for row in rows for spot in row]
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {spot: _wanted(spot, sweep) for spot in row}
            row.sort(key=lambda spot: (ends[spot.floor], wanted[spot], spot.name))
            for floor, own in groupby(row, key=lambda spot: spot.floor):
                _settle(list(own), wanted, ends[floor])
        length = sum(abs(spot.x - other.x) for spot in spots for other in spot.near)
        score = _crossings(rows), length
        if sweep > SWEEPS // 4 and (best is None or score < best[0]):
            best = score, [spot.x for spot in spots]
    assert best is not None
    for spot, x in zip(spots, best[1], strict=True):
        spot.x = x
    for row in rows:
        row.sort(key=lambda spot: spot.x)


def _wanted(spot: Spot, sweep: int) -> float:
    """Return the mean x of what a spot is joined with: above and below by turns, and in the end of both."""
    above = [other.x for other in spot.near if other.row > spot.row]
    below = [other.x for other in spot.near if other.row < spot.row]
    near = above + below if sweep > SWEEPS // 2 else (below if sweep % 2 else above) or above + below
    return sum(near) / len(near) if near else spot.x


def _settle(row: Sequence[Spot], wanted: Mapping[Spot, float], ends: tuple[float, float]) -> None:
    """Set the x nearest to what is wanted at which nothing overlaps, by pooling neighbours that do."""
    offsets, taken = [], 0.0
    for spot in row:
        offsets.append(taken + (spot.width + GAP) / 2)
        taken += spot.width + GAP
    pools: list[list[float]] = []
    for spot, offset in zip(row, offsets, strict=True):
        pools.append([wanted[spot] - offset])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    starts = [sum(pool) / len(pool) for pool in pools for _ in pool]
    low, high = ends[0] + MARGIN, ends[1] - MARGIN - taken
    for spot, offset, start in zip(row, offsets, starts, strict=True):
        spot.x = min(max(start, low), high) + offset


def _crossings(rows: Sequence[Sequence[Spot]]) -> int:
    count = 0
    for row in rows:
        ends = [(spot.x, other.x) for spot in row for other in spot.near if other.row < spot.row]
        count += sum((a - c) * (b - d) < 0.0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    return count


# --- the drawing -----------------------------------------------------------------------------------------


def svg_of(house: House) -> str:
    """Return the picture."""
    plan = plan_of(house)
    tops = _tops(plan)
    width = max(right for _, right in plan.ends.values()) + 2 * MARGIN
    floors, titles, rooms, arrows = [], [], [], []
    for tint, (floor, (left, right)) in zip(TINTS, plan.ends.items(), strict=True):
        rows = plan.rows_of[floor]
        top = tops[rows.stop - 1] - TITLE - MARGIN
        bottom = tops[rows.start] + _height(plan.rows[rows.start]) + MARGIN
        floors.append(
            f'<rect x="{left + MARGIN + 3:.0f}" y="{top:.0f}" width="{right - left - 6:.0f}" '
            f'height="{bottom - top:.0f}" rx="8" fill="{tint}"/>'
        )
        titles.append(
            f'<text class="floor" x="{left + MARGIN + 14:.0f}" y="{top + 20:.0f}" stroke="{tint}">{floor}</text>'
        )
    for row in plan.rows:
        for spot in row:
            if spot.room:
                rooms.append(_drawn(spot, tops[spot.row] + (_height(row) - spot.height) / 2))
    for passed in plan.arrows:
        inside = passed[0].room and passed[-1].room and passed[0].room.floor == passed[-1].room.floor
        kind = "" if inside else ' class="between"'
        arrows.append(f'<path{kind} d="{_way(passed, tops, plan)}" marker-end="url(#head)"/>')
    height = tops[0] + _height(plan.rows[0]) + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
            "<title>The floors and rooms of DisUE: each imports only what lies below it</title>",
            "<style>.floor{font-weight:bold;font-size:14px;fill:#333;paint-order:stroke;stroke-width:5}.folder{font-weight:bold;font-size:13px}"
            "path{fill:none;stroke:#34495e;stroke-width:1.3}.between{stroke:#9aa7b4}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><polygon points="0,1 10,5 0,9" fill="#34495e"/></marker></defs>',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
            *floors,
            *arrows,
            *titles,
            *rooms,
            "</svg>\n",
        ]
    )


def _height(row: Iterable[Spot]) -> float:
    return max(spot.height for spot in row)


def _tops(plan: Plan) -> list[float]:
    """Return the y of the top of each row."""
    lowest = {rows.start for rows in plan.rows_of.values()}
    tops = [0.0] * len(plan.rows)
    y = float(MARGIN + TITLE + MARGIN)
    for number in range(len(plan.rows) - 1, -1, -1):
        tops[number] = y
        y += _height(plan.rows[number]) + (BETWEEN_ROWS + MARGIN + TITLE / 2 if number in lowest else BETWEEN_ROWS)
    return tops


def _way(passed: Sequence[Spot], tops: Sequence[float], plan: Plan) -> str:
    """Return the way of an arrow: out of a room, straight down through the rows it passes, and into a room."""
    first, *between, last = passed
    x, y = first.x + MARGIN, tops[first.row] + (_height(plan.rows[first.row]) + first.height) / 2
    way = f"M{x:.0f} {y:.0f}"
    for spot in (*between, last):
        height = _height(plan.rows[spot.row])
        top = tops[spot.row] + ((height - last.height) / 2 if spot is last else 0.0)
        to, middle = spot.x + MARGIN, (y + top) / 2
        way += f" C{x:.0f} {middle:.0f} {to:.0f} {middle:.0f} {to:.0f} {top:.0f}"
        x, y = to, tops[spot.row] + height
        way += "" if spot is last else f" V{y:.0f}"
    return way


def _drawn(spot: Spot, top: float) -> str:
    left = spot.x + MARGIN - spot.width / 2
    kind = ' class="folder"' if spot.room and spot.room.folder else ""
    text = "".join(
        f'<text{kind} x="{spot.x + MARGIN:.0f}" y="{top + PAD + LINE * number + 10:.0f}" text-anchor="middle">'
        f"{escape(line)}</text>"
        for number, line in enumerate(spot.lines)
    )
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{spot.width:.0f}" height="{spot.height:.0f}" rx="5" fill="#fff" '
        f'stroke="#7f8c8d"/>{text}'
    )


def main() -> int:
    """Draw the picture, or name what leads up; return the exit status."""
    try:
        house = read_house()
    except ClimbError as error:
        print(error, file=sys.stderr)
        return 1
    PICTURE.write_text(svg_of(house), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
