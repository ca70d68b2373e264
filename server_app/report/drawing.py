"""What the charts of a report share: colours of the page by name, legends, axes, and a heatmap with numbers.

Figures are plain dictionaries that plotly.js draws. Names of clients and classes come from outside, and plotly.js reads
markup in text, so each is escaped (`safe`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

Figure = dict[str, Any]

PALETTE = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#2ca9a9", "#d4a017", "#ff8fa3"),
    *("#9d755d", "#7f8fd9", "#8cb369", "#79706e"),
)
SYMBOLS = (
    *("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon", "hexagon"),
    *("triangle-down", "bowtie", "hourglass", "star-diamond", "triangle-left", "triangle-right"),
)
INK, MUTED, GRID, ACCENT, SECOND = (f"var(--{name})" for name in ("ink", "muted", "grid", "accent", "second"))
SEQUENTIAL = "var(--sequential)"
MOST_LEGEND = 12
MOST_ROWS = 40
MOST_LABELLED = 12
MIN_CELL_TEXT = 0.0051


@dataclass(frozen=True)
class Chart:
    """A chart with its place on the page.

    Attributes
    ----------
    key : str
        What it is called in the page.
    title, words : str
        What it shows, and how to read it.
    figure : dict or None
        For plotly.js; None: there is nothing to draw, and ``words`` say why.
    height : int
        Pixels.
    min_width : int
        Pixels, below which it scrolls.
    """

    key: str
    title: str
    words: str
    figure: Figure | None = None
    height: int = 360
    min_width: int = 0


def safe(name: object) -> str:
    """Return a name as plotly.js shows it letter by letter."""
    return escape(str(name), quote=False)  # plotly.js knows no entity for quotes


def colour(cluster: int) -> str:
    """Return the colour of a cluster, the same in all charts."""
    return PALETTE[cluster % len(PALETTE)]


def symbol_of(group: int | None) -> str:
    """Return the mark of a planted group, the same in all charts."""
    return SYMBOLS[0 if group is None else group % len(SYMBOLS)]


def legend_entry(name: str, tint: str, symbol: str) -> Figure:
    """Return an entry of the legend that stands for no data."""
    marker = {"color": tint, "symbol": symbol, "size": 10}
    return {"x": [None], "y": [None], "mode": "markers", "name": name, "marker": marker, "hoverinfo": "skip"}


def legend(title: str = "") -> Figure:
    """Return the layout of a legend above the chart."""
    return {
        "legend": {
            "title": {"text": title},
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
        }
    }


def colour_bar(title: str) -> Figure:
    """Return the scale beside a heatmap."""
    return {"title": {"text": title}, "thickness": 10, "outlinewidth": 0, "len": 0.9}


def rounds_axis(rounds: int) -> Figure:
    """Return the axis of so many rounds."""
    axis: Figure = {"title": {"text": "round"}, "tickformat": "d"}
    return axis | ({"dtick": 1} if rounds <= 12 else {})


def heatmap(
    rows: Sequence[np.ndarray[Any, Any]],
    names: Sequence[str],
    columns: Sequence[str],
    what: str,
    form: str,
    note: str = "",
) -> Figure:
    """Return a heatmap with its numbers in the cells, where there is room for them."""
    data: Figure = {
        "type": "heatmap",
        "z": [np.round(row, 4).tolist() for row in rows],
        "x": list(columns),
        "y": list(names),
        "colorscale": SEQUENTIAL,
        "zmin": 0.0,
        "zmax": max(float(max((row.max() for row in rows), default=1.0)), 1e-6),
        "xgap": 1,
        "ygap": 1,
        "colorbar": colour_bar(what),
        "hovertemplate": f"%{{y}}<br>class %{{x}}: %{{z:{form}}}<extra></extra>",
    }
    if len(columns) <= MOST_LABELLED:
        data["text"] = [[format(v, form) if v >= MIN_CELL_TEXT else "" for v in row.tolist()] for row in rows]
        data |= {"texttemplate": "%{text}", "showscale": False}
    layout: Figure = {
        "xaxis": {"type": "category", "showgrid": False, "title": {"text": "class"}, "automargin": True},
        "yaxis": {"type": "category", "showgrid": False, "autorange": "reversed", "automargin": True},
        "hovermode": "closest",
    }
    if note:
        layout["annotations"] = [
            {"text": note, "xref": "paper", "yref": "paper", "x": 0, "y": 1.0, "yshift": 20, "showarrow": False}
        ]
    return {"data": [data], "layout": layout}


def heatmap_height(rows: int) -> int:
    """Return pixels."""
    return 110 + max(150, 34 * rows)


def heatmap_width(columns: int) -> int:
    """Return pixels, below which a heatmap scrolls."""
    return min(1000, 120 + 36 * columns)
