"""Membership over rounds as a flow: blocks are clusters, bands are the clients that go from one to the next."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from server_app.callbacks.report_data import Move
from server_app.report.reading import RunRecord
from server_app.report.words import counted

MOST_COLUMNS = 10
PADDING = 12
TOP = 34

Column = tuple[str, dict[str, int], bool]
"""Its title, the block of every client that is in one, and whether blocks are planted groups."""


def flow(record: RunRecord, colour: Callable[[int], str]) -> tuple[dict[str, Any], int] | None:
    """Return the figure and its number of columns; None if there are fewer than two."""
    columns = _columns(record)
    if len(columns) < 2:
        return None
    blocks = max(len(set(column[1].values())) for column in columns)
    height = min(900, 240 + 26 * blocks)
    padding = min(PADDING, 0.5 * (height - 2 * TOP) / blocks)
    orders = [_order(i, columns) for i in range(len(columns))]
    places = _places(columns, orders, height - 2 * TOP, padding)
    number = {key: i for i, key in enumerate(places)}
    links: Counter[tuple[int, int]] = Counter()
    for i in range(len(columns) - 1):
        before, after = columns[i][1], columns[i + 1][1]
        links.update((number[i, before[name]], number[i + 1, after[name]]) for name in before.keys() & after.keys())
    keys = list(places)
    names = [f"{'group' if columns[i][2] else 'cluster'} {block}" for i, block in keys]
    sizes = {key: sum(block == key[1] for block in columns[key[0]][1].values()) for key in keys}
    tints = ["var(--muted)" if columns[i][2] else colour(block) for i, block in keys]
    ordered = sorted(links)
    figure = {
        "data": [
            {
                "type": "sankey",
                "arrangement": "fixed",
                "node": {
                    "x": [places[key][0] for key in keys],
                    "y": [places[key][1] for key in keys],
                    "label": [str(block) for _, block in keys],
                    "customdata": [
                        f"{columns[i][0]}<br>{name}: {counted(sizes[i, block], 'client')}"
                        for (i, block), name in zip(keys, names, strict=True)
                    ],
                    "color": tints,
                    "pad": padding,
                    "thickness": 16,
                    "line": {"width": 0},
                    "hovertemplate": "%{customdata}<extra></extra>",
                },
                "link": {
                    "source": [a for a, _ in ordered],
                    "target": [b for _, b in ordered],
                    "value": [links[pair] for pair in ordered],
                    "color": [f"{colour(keys[b][1])}55" for _, b in ordered],
                    "customdata": [f"{counted(links[a, b], 'client')}<br>{names[a]} → {names[b]}" for a, b in ordered],
                    "hovertemplate": "%{customdata}<extra></extra>",
                },
            }
        ],
        "layout": {
            "height": height,
            "margin": {"l": 12, "r": 12, "t": TOP, "b": TOP},
            "annotations": [
                {
                    "text": title,
                    "x": i / (len(columns) - 1),
                    "y": 1,
                    "yshift": 24,
                    "xref": "paper",
                    "yref": "paper",
                    "xanchor": "left" if i == 0 else "right" if i == len(columns) - 1 else "center",
                    "showarrow": False,
                }
                for i, (title, _, _) in enumerate(columns)
            ],
        },
    }
    return figure, len(columns)


def _columns(record: RunRecord) -> list[Column]:
    groups = record.groups
    planted: list[Column] = [("planted groups", groups, True)] if groups else []
    return planted + [(f"round {n}", clusters, False) for n, clusters in _rounds(record)]


def _rounds(record: RunRecord) -> list[tuple[int, dict[str, int]]]:
    """Return the assignment in the first round, in the last one, and in those with most moves between them."""
    if not record.moves:
        return []
    by_round: dict[int, list[Move]] = {}
    for move in record.moves:
        by_round.setdefault(move.round, []).append(move)
    first = min(by_round)
    last = max([row["round"] for row in record.rows] + [max(by_round)])
    busiest = sorted(by_round.keys() - {first, last}, key=lambda n: (-len(by_round[n]), n))[: MOST_COLUMNS - 2]
    wanted = {first, last, *busiest}
    clusters: dict[str, int] = {}
    states = []
    for n in sorted({*by_round, last}):
        clusters |= {move.client: move.cluster for move in by_round.get(n, [])}
        if n in wanted:
            states.append((n, dict(clusters)))
    return states


def _order(index: int, columns: list[Column]) -> list[int]:
    """Return a column's blocks from top to bottom; groups stand where their clients go."""
    blocks = sorted(set(columns[index][1].values()))
    if not columns[index][2]:
        return blocks
    after = columns[index + 1][1]

    def height_of(block: int) -> float:
        goals = [after[name] for name, own in columns[index][1].items() if own == block and name in after]
        return sum(goals) / len(goals) if goals else float("inf")

    return sorted(blocks, key=lambda block: (height_of(block), block))


def _places(
    columns: list[Column], orders: list[list[int]], height: float, padding: float
) -> Mapping[tuple[int, int], tuple[float, float]]:
    """Return the centre of every block, in shares of the drawing, as plotly.js scales blocks itself."""
    counts = [Counter(column[1].values()) for column in columns]
    scale = min((height - padding * (len(c) - 1)) / c.total() for c in counts)
    places: dict[tuple[int, int], tuple[float, float]] = {}
    for i, (count, order) in enumerate(zip(counts, orders, strict=True)):
        used = scale * count.total() + padding * (len(order) - 1)
        y = (height - used) / 2
        for block in order:
            tall = scale * count[block]
            x = min(max(i / (len(columns) - 1), 0.001), 0.999)
            places[i, block] = (round(x, 4), round(min(max((y + tall / 2) / height, 0.001), 0.999), 4))
            y += tall + padding
    return places
