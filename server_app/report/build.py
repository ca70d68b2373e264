"""From run directories to a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from plotly.offline import get_plotlyjs

import disue
from disue.errors import DataError
from disue.files import write_whole
from server_app.config import RunConfig
from server_app.report import comparison
from server_app.report.charts import charts, worst_count
from server_app.report.command import command_of
from server_app.report.drawing import colour
from server_app.report.reading import ClientRow, RunRecord, read_run
from server_app.report.script import SCRIPT
from server_app.report.style import STYLE
from server_app.report.template import PAGE
from server_app.report.words import cards, percent, sentences, status_of

REPORT = "report.html"
COMPARISON = "comparison.html"
NARROW = (("map", "similarity"), ("composition", "teaching"), ("seconds", "traffic"))
"""Charts that stand side by side where the page is wide."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table: what is read, what it is sorted by, and the colour of its dot."""

    text: str
    value: object = ""
    colour: str = ""


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of a run, and return where: ``report.html`` in its directory, if nothing else is said.

    Raises
    ------
    DataError
        If there is no run in the directory, a file in it is damaged, or the report cannot be written.
    """
    return _write(report_page(read_run(directory)), output or directory / REPORT)


def write_comparison(directories: Sequence[Path], output: Path | None = None) -> Path:
    """Write one page about several runs, and return where: ``comparison.html`` in the working directory by default.

    Raises
    ------
    DataError
        As `write_report` does.
    """
    return _write(comparison_page([read_run(directory) for directory in directories]), output or Path(COMPARISON))


def report_page(record: RunRecord) -> str:
    """Return the HTML of the report of a run."""
    drawn = {chart.key: chart for chart in charts(record)}
    rows: list[Any] = []
    for key, chart in drawn.items():
        pair = next((pair for pair in NARROW if key in pair), None)
        if pair is None:
            rows.append([chart])
        elif key == pair[0]:
            rows.append([drawn[other] for other in pair])
        if key == "clients" and record.clients:
            rows.append("table")
    contents = [(chart.key, chart.title) for chart in drawn.values()]
    if record.clients:
        contents.insert(next(i for i, (key, _) in enumerate(contents) if key == "clients") + 1, ("table", "Clients"))
    return _render(
        title=f"{record.config.get('method')} on {record.config.get('dataset')}",
        subtitle=str(record.directory),
        status=status_of(record),
        cards=cards(record),
        sentences=sentences(record),
        contents=[*contents, ("config", "Configuration")],
        layout=[*rows, "config"],
        table=_table(record),
        config=_config(record),
    )


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Return the HTML that compares runs."""
    names = comparison.names_of(records)
    drawn = comparison.charts(records, names)
    return _render(
        title=f"Comparison of {len(records)} runs",
        subtitle=", ".join(names),
        status="",
        cards=[],
        sentences=comparison.sentences(records, names),
        contents=[("numbers", "Side by side"), *((c.key, c.title) for c in drawn), ("config", "Configurations")],
        layout=["numbers", *([chart] for chart in drawn), "config"],
        numbers=comparison.numbers(records, names),
        config=comparison.configurations(records, names),
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE)


def _render(**values: Any) -> str:
    # A parser must not see the end of the script in what the script holds.
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    values = {"table": None, "numbers": None} | values
    return _template().render(style=STYLE, script=SCRIPT, plotly=plotly, version=disue.__version__, **values)


def _write(page: str, path: Path) -> Path:
    try:
        write_whole(path, page)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written ({error.strerror})") from None
    return path


def _table(record: RunRecord) -> dict[str, Any]:
    clients = record.clients
    known = sorted((client for client in clients if client.expert is not None), key=lambda c: c.expert or 0.0)
    worst = {client.name for client in known[: worst_count(len(known))]} if known else set()
    several = len({client.model for client in clients}) > 1
    personal = any(client.personal is not None for client in clients)
    columns = ["client", "group", "cluster", "examples", "universal", "own expert", "gain"]
    columns += ["fine-tuned"] * personal + ["model"] * several
    models = sorted({client.model for client in clients})
    lines = []
    for order, client in enumerate(clients):
        cells = [
            Cell(client.name, order),
            _whole(client.group),
            _whole(client.cluster, "" if client.cluster is None else colour(client.cluster)),
            Cell(f"{client.examples:,}" if client.examples else "–", client.examples),
            _share(client.universal),
            _share(client.expert),
            _gain(client),
            *([_share(client.personal)] if personal else []),
            *([Cell(client.model, models.index(client.model))] if several else []),
        ]
        lines.append({"cells": cells, "worst": client.name in worst})
    picks = [
        {"name": name, "column": columns.index(name), "values": sorted(values)}
        for name, values in (
            ("cluster", {client.cluster for client in clients if client.cluster is not None}),
            ("group", {client.group for client in clients if client.group is not None}),
        )
        if len(values) > 1
    ]
    return {"columns": columns, "lines": lines, "picks": picks}


def _whole(value: int | None, tint: str = "") -> Cell:
    return Cell("–") if value is None else Cell(str(value), value, tint)


def _share(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(percent(value), value)


def _gain(client: ClientRow) -> Cell:
    if client.expert is None or client.universal is None:
        return Cell("–")
    gain = client.expert - client.universal
    return Cell(f"{100 * gain:+.1f}", round(gain, 6))


def _config(record: RunRecord) -> dict[str, Any]:
    defaults = RunConfig().to_flower()
    entries = [
        {"key": key, "value": _shown(value), "set": defaults.get(key) != value} for key, value in record.config.items()
    ]
    versions = [
        {"key": key, "value": value, "set": False} for key, value in record.settings.get("versions", {}).items()
    ]
    return {
        "title": "Configuration",
        "words": "This command repeats the run. Below, what was set otherwise than by default stands out.",
        "commands": [command_of(record)],
        "parts": [{"title": "Run config", "entries": entries}, {"title": "Versions", "entries": versions}],
    }


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "–" if value == "" else str(value)
