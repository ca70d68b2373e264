"""Several runs on one page: their numbers side by side, their curves on top of each other, where they differ."""

from collections.abc import Callable, Sequence
from typing import Any

from server_app.report.command import PLACES, command_of
from server_app.report.drawing import PALETTE, Chart, Figure, safe
from server_app.report.reading import RunRecord
from server_app.report.words import counted, duration, ending, last_of, measured, percent, size, total_of

Lines = tuple[tuple[str, str, Callable[[float], str], int], ...]

HIGHEST, LOWEST, NEITHER = 1, -1, 0
LAST: Lines = (
    ("universal expert", "universal_accuracy", percent, HIGHEST),
    ("untaught average of the run's client models", "average_accuracy", percent, HIGHEST),
    ("own expert", "expert_accuracy", percent, HIGHEST),
    ("own expert, worst tenth", "worst_decile_accuracy", percent, HIGHEST),
    ("after local fine-tuning", "personal_accuracy", percent, HIGHEST),
    ("clusters", "num_clusters", lambda value: f"{value:.0f}", NEITHER),
    ("agreement with planted groups", "ari", lambda value: f"{value:.2f}", HIGHEST),
)
TOTAL: Lines = (
    ("sent to clients", "bytes_down", size, LOWEST),
    ("sent by clients", "bytes_up", size, LOWEST),
    ("local training", "seconds_local", duration, LOWEST),
    ("distillation", "seconds_distillation", duration, LOWEST),
)


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: that of its directory, with more of the path where two are called the same."""
    paths = [record.directory.absolute() for record in records]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({i + 1})" for i, path in enumerate(paths)]


def sentences(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    """Return in words which run is best in what."""
    words = [f"{name}: {early}" for r, name in zip(records, names, strict=True) if (early := ending(r))]
    known_of_all = len(words)
    for what, key in (("universal expert", "universal_accuracy"), ("own experts", "expert_accuracy")):
        known = [
            (value, name) for r, name in zip(records, names, strict=True) if (value := last_of(r, key)) is not None
        ]
        if len(known) > 1:
            (best, name), (second, _) = sorted(known, reverse=True)[:2]
            words.append(
                f"The best {what}: {name}, {percent(best)}; {100 * (best - second):.1f} points before the second."
                if best > second
                else f"The best {what}: several with {percent(best)}."
            )
    unlike = [key for key, values in differences(records).items() if key in ("dataset", "scenario", "seed") and values]
    if unlike:
        words.append(f"The runs differ in {' and '.join(unlike)}: they were not on the same clients and data.")
    return words if len(words) > known_of_all else [*words, "The runs share no number that could be compared."]


def numbers(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return the table of numbers, the best of each line marked."""
    lines = [{"name": "rounds", "cells": [{"text": str(len(record.rows)), "best": False} for record in records]}]
    for source in (LAST, TOTAL):
        for name, key, form, better in source:
            found = [measured(r, key) if source is LAST else (total_of(r, key), "") for r in records]
            values = [value for value, _ in found]
            known = [value for value in values if value is not None]
            if not known:
                continue
            best = max(known, key=lambda value: better * value)
            marked = better != NEITHER and min(known) != max(known)
            cells = [
                {"text": "–" if v is None else f"{form(v)}{remark}", "best": marked and v == best}
                for v, remark in found
            ]
            lines.append({"name": name, "cells": cells})
    return {"columns": list(names), "lines": lines}


def charts(records: Sequence[RunRecord], names: Sequence[str]) -> list[Chart]:
    """Return the charts that have several runs in them."""
    return [
        _by_round(records, names, "universal_accuracy", "universal", "Universal expert by round"),
        _by_round(records, names, "expert_accuracy", "expert", "Own experts by round, mean over clients"),
        _spread(records, names),
    ]


def configurations(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return where the runs' configurations differ, and the commands that repeat them."""
    different = differences(records)
    parts = [
        {"title": name, "entries": [{"key": key, "value": values[i], "set": True} for key, values in different.items()]}
        for i, name in enumerate(names)
    ]
    same = "Apart from where they were written, the runs have the same configuration."
    return {
        "title": "Configurations",
        "words": "What differs between the runs, and the command that repeats each." if different else same,
        "commands": [command_of(record) for record in records],
        "parts": parts if different else [],
    }


def differences(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the values of each key that is not the same in all runs."""
    keys = dict.fromkeys(key for record in records for key in record.config if key not in PLACES)
    values = {key: [str(record.config.get(key, "–")) for record in records] for key in keys}
    return {key: own for key, own in values.items() if len(set(own)) > 1}


def _by_round(records: Sequence[RunRecord], names: Sequence[str], metric: str, key: str, title: str) -> Chart:
    data: list[Figure] = []
    for number, (record, name) in enumerate(zip(records, names, strict=True)):
        known = [(row["round"], round(row[metric], 5)) for row in record.rows if row.get(metric) is not None]
        data.append(
            {
                "x": [x for x, _ in known],
                "y": [y for _, y in known],
                "name": safe(name),
                "mode": "lines+markers" if len(known) <= 25 else "lines",
                "line": {"color": PALETTE[number % len(PALETTE)], "width": 2.5},
                "hovertemplate": f"{safe(name)}<br>round %{{x}}: %{{y:.1%}}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "round"}, "tickformat": "d"},
        "yaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    shown = sum(bool(trace["x"]) for trace in data)
    words = f"One line per run; {counted(shown, 'run')} measured it."
    return Chart(key, title, words, {"data": data, "layout": layout}, 360)


def _spread(records: Sequence[RunRecord], names: Sequence[str]) -> Chart:
    data: list[Figure] = [
        {
            "type": "box",
            "x": [client.expert for client in record.clients if client.expert is not None],
            "text": [safe(client.name) for client in record.clients if client.expert is not None],
            "name": safe(name),
            "orientation": "h",
            "boxpoints": "all" if len(record.clients) <= 100 else "outliers",
            "jitter": 0.4,
            "marker": {"color": PALETTE[number % len(PALETTE)], "size": 5},
            "showlegend": False,
        }
        for number, (record, name) in enumerate(zip(records, names, strict=True))
    ]
    layout = {
        "xaxis": {"title": {"text": "accuracy on the client's own test data"}, "tickformat": ".0%"},
        "yaxis": {"autorange": "reversed"},
    }
    words = "How the accuracy of the own expert is spread over the clients: a box from quartile to quartile."
    return Chart("spread", "Clients", words, {"data": data, "layout": layout}, 140 + 70 * len(records))
