"""The charts of a report, one function each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server_app.report.drawing import (
    ACCENT,
    INK,
    MOST_LEGEND,
    MOST_ROWS,
    MUTED,
    PALETTE,
    SECOND,
    SEQUENTIAL,
    Chart,
    Figure,
    colour,
    colour_bar,
    heatmap,
    heatmap_height,
    heatmap_width,
    legend,
    legend_entry,
    rounds_axis,
    safe,
    symbol_of,
)
from server_app.report.flow import flow
from server_app.report.reading import RunRecord
from server_app.report.words import AVERAGE, PHASES, counted, percent, unwritten


def charts(record: RunRecord) -> list[Chart]:
    """Return all charts of one run, in the order in which they are read."""
    return [
        accuracy(record),
        cluster_map(record),
        similarity(record),
        membership(record),
        composition(record),
        teaching(record),
        client_accuracy(record),
        confusion(record),
        seconds(record),
        traffic(record),
    ]


def accuracy(record: RunRecord) -> Chart:
    """Draw accuracy by round."""
    chart = ("accuracy", "Accuracy by round")
    if not record.rows:
        return Chart(*chart, "No round is finished yet.")
    data = []
    low, high = (_line(record, f"expert_accuracy_{end}") for end in ("p10", "p90"))
    if low and high:
        data.append(
            {
                "x": low[0] + high[0][::-1],
                "y": low[1] + high[1][::-1],
                "fill": "toself",
                "fillcolor": "var(--band)",
                "line": {"width": 0},
                "mode": "lines",
                "hoverinfo": "skip",
                "name": "own expert, 10 % to 90 % of clients",
            }
        )
    lines = (
        ("universal_accuracy", "universal expert", {"color": ACCENT, "width": 3}),
        ("average_accuracy", AVERAGE, {"color": MUTED, "width": 2, "dash": "dash"}),
        ("expert_accuracy", "own expert, mean", {"color": SECOND, "width": 3}),
        ("worst_decile_accuracy", "own expert, worst tenth", {"color": SECOND, "width": 1.5, "dash": "dot"}),
        ("personal_accuracy", "after local fine-tuning", {"color": "#54a24b", "width": 2}),
    )
    for key, name, style in lines:
        if line := _line(record, key):
            few = len(line[0]) <= 25
            data.append(
                {
                    "x": line[0],
                    "y": line[1],
                    "name": name,
                    "line": style,
                    "mode": "lines+markers" if few else "lines",
                    "marker": {"size": 6},
                    "hovertemplate": f"{name}<br>round %{{x}}: %{{y:.1%}}<extra></extra>",
                }
            )
    layout = {"xaxis": rounds_axis(len(record.rows)), "yaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%"}}
    words = (
        "The universal expert and the average are measured on one balanced test set for all; an own expert on "
        "its client's own test data."
        if _line(record, "average_accuracy")
        else "Measured by the clients, on their own test data."
    )
    return Chart(*chart, words, {"data": data, "layout": layout | legend()}, 400)


def cluster_map(record: RunRecord) -> Chart:
    """Draw the clients' signatures in the plane."""
    chart = ("map", "Cluster map")
    if "map" not in record.arrays:
        return Chart(*chart, unwritten(record) or "This method compares no clients.")
    names, clusters, groups = record.names["map"], record.clusters, record.groups
    points = np.round(record.arrays["map"].astype(float), 4)
    of = [clusters.get(name, -1) for name in names]
    shown = sorted(set(of))
    few = len(shown) <= MOST_LEGEND
    data: list[Figure] = []
    for cluster in shown if few else [None]:
        own = [i for i in range(len(names)) if cluster is None or of[i] == cluster]
        data.append(
            {
                "x": points[own, 0].tolist(),
                "y": points[own, 1].tolist(),
                "mode": "markers",
                "name": "clients" if cluster is None else f"cluster {cluster}",
                "text": [_who(names[i], of[i], groups.get(names[i])) for i in own],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": [colour(of[i]) for i in own],
                    "symbol": [symbol_of(groups.get(names[i])) for i in own],
                    "size": 11 if len(names) <= 200 else 7,
                    "opacity": 0.85,
                    "line": {"width": 1, "color": "var(--paper)"},
                },
                "showlegend": False,
            }
        )
    if few:
        data += [legend_entry(str(c), colour(c), "circle") for c in shown if c >= 0]
    planted = sorted(set(groups.values()))
    if len(planted) <= MOST_LEGEND:
        data += [legend_entry(str(g), MUTED, f"{symbol_of(g)}-open") | {"legend": "legend2"} for g in planted]
    share = float(record.names.get("map-share", 1.0))
    words = (
        f"A point is a client; its colour is the cluster that the server found"
        f"{', its shape the planted group' if planted else ''}. Clients that are near each other have similar "
        f"signatures ({record.config.get('signature')}). The two directions of most variance, which show "
        f"{percent(share)} of it."
    )
    blank = {"showticklabels": False, "zeroline": False}
    layout: Figure = {"xaxis": blank, "yaxis": blank | {"scaleanchor": "x"}} | legend("cluster")
    if planted:
        layout["legend2"] = legend("planted group")["legend"] | {"y": -0.03, "yanchor": "top"}
    return Chart(*chart, words, {"data": data, "layout": layout}, 460)


def membership(record: RunRecord) -> Chart:
    """Draw who moved from cluster to cluster."""
    chart = ("membership", "Membership over rounds")
    drawn = flow(record, colour)
    if drawn is None:
        return Chart(*chart, "There is nothing to follow: no client was in a cluster in two rounds yet.")
    figure, columns = drawn
    words = (
        "From left to right: each block is a cluster in a round, each band the clients that go from one to the next. "
        "Rounds in which nobody moved are left out; of many others, those in which most clients did are shown."
    )
    return Chart(*chart, words, figure, int(figure["layout"]["height"]), 110 * columns)


def composition(record: RunRecord) -> Chart:
    """Draw the classes in every cluster."""
    chart = ("composition", "Classes in each cluster")
    labels = record.arrays.get("labels")
    clusters = record.clusters
    if labels is None or not clusters:
        return Chart(*chart, unwritten(record) or "The server knows nothing of the clients' labels.")
    sums: dict[int, np.ndarray[Any, Any]] = {}
    for name, row in zip(record.names["labels"], labels.astype(float), strict=True):
        if name in clusters:
            sums[clusters[name]] = sums.get(clusters[name], np.zeros(len(row))) + row
    members = Counter(clusters.values())
    rows = _largest({cluster: members[cluster] for cluster in sums})
    shares = [sums[cluster] / max(sums[cluster].sum(), 1e-12) for cluster in rows]
    told = record.config.get("share-label-counts", True) or record.names.get("labels-source") != "told"
    what = "training examples" if told else "entries in the lists of classes that its clients have"
    words = f"Of each cluster's {what}, the share of every class."
    if record.names.get("labels-source") == "scenario":
        words += " From the simulated data: this method's clients tell the server nothing of their labels."
    names = [f"cluster {c} ({counted(members[c], 'client')})" for c in rows]
    figure = heatmap(shares, names, _classes(record, labels.shape[1]), "share", ".0%", _left_out(sums, rows))
    return Chart(*chart, words, figure, heatmap_height(len(rows)), heatmap_width(labels.shape[1]))


def similarity(record: RunRecord) -> Chart:
    """Draw how alike clients are, ordered by cluster."""
    chart = ("similarity", "Similarity of clients")
    if "similarity" not in record.arrays:
        return Chart(*chart, unwritten(record) or "This method compares no clients.")
    matrix = np.round(record.arrays["similarity"].astype(float), 3)
    names, clusters = [safe(name) for name in record.names["similarity"]], record.clusters
    of = [clusters.get(name, -1) for name in record.names["similarity"]]
    starts = [i for i in range(len(of)) if i == 0 or of[i] != of[i - 1]]
    middles = [(a + b - 1) // 2 for a, b in zip(starts, [*starts[1:], len(of)], strict=True)]
    ticks: Figure = {"showgrid": False, "type": "category", "title": {"text": "cluster"}}
    if len(starts) <= MOST_LEGEND:
        ticks |= {"tickvals": [names[i] for i in middles], "ticktext": [str(of[i]) for i in middles]}
    else:
        ticks |= {"showticklabels": False}
    edges = [
        {"type": "line", "xref": xref, "yref": yref, "line": {"color": INK, "width": 1}} | ends
        for i in starts[1:]
        for xref, yref, ends in (
            ("x", "paper", {"x0": i - 0.5, "x1": i - 0.5, "y0": 0, "y1": 1}),
            ("paper", "y", {"x0": 0, "x1": 1, "y0": i - 0.5, "y1": i - 0.5}),
        )
    ]
    shown, known = len(names), max(len(clusters), len(record.names["map"]))
    words = "How alike the signatures of two clients are (1: equal). Ordered by cluster; lines part the clusters."
    if shown < known:
        words += f" {shown} of {known:,} clients are shown, evenly spaced in this order."
    data = {
        "type": "heatmap",
        "z": matrix.tolist(),
        "x": names,
        "y": names,
        "colorscale": SEQUENTIAL,
        "zmax": 1.0,
        "colorbar": colour_bar("similarity"),
        "hovertemplate": "%{x}<br>%{y}<br>similarity %{z:.2f}<extra></extra>",
    }
    layout = {"xaxis": ticks, "yaxis": ticks | {"autorange": "reversed"}, "shapes": edges}
    return Chart(*chart, words, {"data": [data], "layout": layout}, 460)


def teaching(record: RunRecord) -> Chart:
    """Draw each expert's weight by class."""
    chart = ("teaching", "Who taught what")
    if not record.teaching:
        return Chart(*chart, unwritten(record) or "No experts taught a universal expert in the last round.")
    experts = list(dict.fromkeys(taught.expert for taught in record.teaching))
    classes = sorted({taught.label for taught in record.teaching})
    weights = {(t.expert, t.label): t.weight for t in record.teaching}
    samples = {t.label: t.samples for t in record.teaching}
    rows = experts[:MOST_ROWS]
    values = [np.array([weights.get((expert, label), 0.0) for label in classes]) for expert in rows]
    names = _classes(record, max(classes) + 1)
    columns = [names[label] + ("" if samples[label] else " (none)") for label in classes]
    note = _left_out(experts, rows)
    figure = heatmap(values, [f"expert {safe(expert)}" for expert in rows], columns, "weight", ".2f", note)
    words = (
        "Each expert's mean weight in the vote on the proxy samples of a class, in the last round. A column sums to "
        "one, unless no sample was voted that class."
    )
    return Chart(*chart, words, figure, heatmap_height(len(rows)), heatmap_width(len(classes)))


def client_accuracy(record: RunRecord) -> Chart:
    """Draw the clients' accuracies, sorted."""
    chart = ("clients", "Accuracy of every client")
    known = sorted((c for c in record.clients if c.expert is not None), key=lambda c: c.expert or 0.0)
    if not known:
        return Chart(*chart, unwritten(record) or "No client was evaluated in the last round.")
    worst = worst_count(len(known))
    clusters = [-1 if client.cluster is None else client.cluster for client in known]
    shown = sorted(set(clusters))
    few = len(shown) <= MOST_LEGEND
    marker = 10 if len(known) <= 60 else 7 if len(known) <= 300 else 5
    data: list[Figure] = [
        {
            "x": list(range(1, len(known) + 1)),
            "y": [client.universal for client in known],
            "mode": "markers",
            "name": "universal expert, same client",
            "marker": {"color": MUTED, "symbol": "line-ew-open", "size": marker, "line": {"width": 1.5}},
            "text": [safe(client.name) for client in known],
            "hovertemplate": "%{text}<br>universal expert %{y:.1%}<extra></extra>",
        }
    ]
    for cluster in shown if few else [None]:
        own = [i for i in range(len(known)) if cluster is None or clusters[i] == cluster]
        data.append(
            {
                "x": [i + 1 for i in own],
                "y": [known[i].expert for i in own],
                "mode": "markers",
                "name": _cluster_name(cluster),
                "marker": {"color": [colour(clusters[i]) for i in own], "size": marker},
                "text": [_who(known[i].name, clusters[i], known[i].group) for i in own],
                "hovertemplate": "%{text}<br>own expert %{y:.1%}<extra></extra>",
                "showlegend": False,
            }
        )
    if few:
        data += [legend_entry(_cluster_name(c), colour(c), "circle") for c in shown]
    box = {
        "type": "rect",
        "yref": "paper",
        "x0": 0.5,
        "x1": worst + 0.5,
        "y0": 0,
        "y1": 1,
        "fillcolor": "var(--warn)",
        "line": {"width": 0},
        "layer": "below",
    }
    layout = {
        "xaxis": {
            "title": {"text": "clients, the least well served first"},
            "range": [0.4, len(known) + 0.6],
            "tickformat": "d",
        },
        "yaxis": {"title": {"text": "accuracy on its own test data"}, "tickformat": ".0%"},
        "shapes": [box],
    }
    words = "Each client's own expert on its own test data. The shaded part is the worst tenth."
    return Chart(*chart, words, {"data": data, "layout": layout | legend()}, 400)


def confusion(record: RunRecord) -> Chart:
    """Draw what the universal expert takes for what."""
    chart = ("confusion", "What the universal expert confuses")
    counts = record.arrays.get("confusion")
    if counts is None:
        return Chart(*chart, unwritten(record) or "The server has no test set of its own.")
    totals = counts.sum(axis=1, keepdims=True)
    names = _classes(record, len(counts))
    shares = list(counts / np.maximum(totals, 1))
    figure = heatmap(shares, names, names, "share", ".0%")
    data = figure["data"][0]
    data |= {
        "customdata": counts.tolist(),
        "hovertemplate": "true: %{y}<br>taken for: %{x}<br>%{customdata} examples, %{z:.1%}<extra></extra>",
    }
    figure["layout"]["xaxis"]["title"] = {"text": "taken for"}
    figure["layout"]["yaxis"]["title"] = {"text": "true class"}
    words = (
        f"Of each class's examples in the balanced test set ({int(totals.sum()):,} in all), the share that is taken "
        "for every class. The diagonal is right."
    )
    return Chart(*chart, words, figure, max(380, min(640, 90 + 32 * len(counts))), heatmap_width(len(counts)))


def seconds(record: RunRecord) -> Chart:
    """Draw the seconds of each phase by round."""
    return _cost(
        record,
        Chart("seconds", "Seconds by phase", "Wall-clock time of every phase, as the server saw it."),
        [(f"seconds_{phase}", name, 1.0) for phase, name in PHASES.items()],
        "seconds",
        " s",
    )


def traffic(record: RunRecord) -> Chart:
    """Draw the bytes of each round."""
    parts = [
        ("bytes_down", "training, to the clients", 1e6),
        ("bytes_up", "training, from the clients", 1e6),
        ("bytes_evaluation", "evaluation, both ways", 1e6),
    ]
    return _cost(record, Chart("traffic", "Bytes by round", "Payloads of all messages."), parts, "megabytes", " MB")


def worst_count(clients: int) -> int:
    """Return how many clients the worst tenth is: at least one."""
    return max(1, clients // 10)


# --- details -------------------------------------------------------------------------------------------


def _cost(record: RunRecord, chart: Chart, parts: Sequence[tuple[str, str, float]], title: str, unit: str) -> Chart:
    if not record.rows:
        return Chart(chart.key, chart.title, "No round is finished yet.")
    rounds = [row["round"] for row in record.rows]
    data = [
        {
            "type": "bar",
            "x": rounds,
            "y": [round((row.get(key) or 0) / scale, 4) for row in record.rows],
            "name": name,
            "marker": {"color": PALETTE[number]},
            "hovertemplate": f"round %{{x}}, {name}: %{{y:.2f}}{unit}<extra></extra>",
        }
        for number, (key, name, scale) in enumerate(parts)
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.25 if len(rounds) <= 60 else 0,
        "xaxis": rounds_axis(len(rounds)),
        "yaxis": {"title": {"text": title}, "rangemode": "tozero"},
    }
    return Chart(chart.key, chart.title, chart.words, {"data": data, "layout": layout | legend()}, 320)


def _line(record: RunRecord, key: str) -> tuple[list[int], list[float]] | None:
    known = [(row["round"], round(row[key], 5)) for row in record.rows if row.get(key) is not None]
    return ([x for x, _ in known], [y for _, y in known]) if known else None


def _largest(members: Mapping[int, int]) -> list[int]:
    """Return the clusters in order, of too many the largest."""
    return sorted(sorted(members, key=lambda cluster: (-members[cluster], cluster))[:MOST_ROWS])


def _left_out(every: Any, rows: Sequence[Any]) -> str:
    return f"{len(rows)} of {len(every)} are shown" if len(rows) < len(every) else ""


def _classes(record: RunRecord, count: int) -> list[str]:
    names = record.class_names(count)
    return [safe(name) for name in names]


def _who(name: str, cluster: int, group: int | None) -> str:
    where = _cluster_name(cluster)
    return f"{safe(name)}<br>{where}" + ("" if group is None else f", planted group {group}")


def _cluster_name(cluster: int | None) -> str:
    return "own expert" if cluster is None else f"cluster {cluster}" if cluster >= 0 else "no cluster"
