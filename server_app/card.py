"""The model card of a run: what the models are for, how good they are and for whom, in Markdown.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Every number is one of the run's own files'.
"""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

import disue
from disue.data import OWN
from disue.errors import ConfigError, DataError
from disue.files import ADVICE, OTHER_VERSION, whole
from disue.naming import by_name, quoted
from disue.runs.gate import GATE
from server_app.config import RunConfig
from server_app.report.command import PLACES
from server_app.report.intervals import in_words, of_metric
from server_app.report.reading import ClientRow, RunRecord, read_run
from server_app.report.words import (
    AVERAGE,
    counted,
    ending,
    has_own_average,
    measured,
    percent,
    privacy,
    total_of,
)
from strategies.methods import METHODS

CARD = "MODEL_CARD.md"
SHOWN = ("method", "dataset", "model", "num-server-rounds", "local-epochs", "local-loss", "seed")
"""Keys that are told at their defaults, too."""
MOST_CLASSES = 5

TEMPLATE = """\
# {{ method }} on {{ dataset }}

{{ kinds }} for images of {{ shape }} pixels (channels x height x width) in {{ classes|length }} classes: \
{{ class_names|plain }}. Made by DisUE {{ version }}; how the run went is in `report.html` and `metrics.jsonl`.

{% if ending %}
**{{ ending|plain }}**

{% endif %}
## Data

{{ source|plain }} {{ clients }} took part, {{ examples }}. \
Pixels in 0..1 are normalised per channel with mean {{ mean }} and deviation {{ std }}.

## How good they are

| | accuracy | 95 % interval | measured on |
| --- | --- | --- | --- |
{% for row in accuracies %}
| {{ row.name|plain }} | {{ row.value }} | {{ row.interval }} | {{ row.on }} |
{% endfor %}

The interval is Wilson's on the server's test set, and Student's over the clients for a mean over clients.
{% if average %}
The {{ average }} is not FedAvg, which trains its clients from their average in every round.
{% endif %}

{% if clusters %}
## Clusters

| cluster | clients | examples | most of the labels | universal | own expert | worst client |
| --- | --- | --- | --- | --- | --- | --- |
{% for row in clusters %}
| {{ row.name }} | {{ row.clients }} | {{ row.examples }} | {{ row.labels|plain }} | {{ row.universal }} | \
{{ row.expert }} | {{ row.worst }} |
{% endfor %}

Accuracies are means over the cluster's clients{{ " that were evaluated" if some }}, each on its own test data; \
a client uses its own expert {{ prior }}.

{% endif %}
{% if privacy %}
## Privacy

{{ privacy|plain }}

{% endif %}
## Limits

{% for limit in limits %}
- {{ limit|plain }}
{% endfor %}

## Use

```bash
disue predict DIR photo.png --top 3
{% if experts %}
disue predict DIR photo.png --expert {{ "auto" if gates else experts[0] }}
disue assign DIR my-data/
{% endif %}
disue export DIR --format onnx
```

```python
from disue import load_run

run = load_run("DIR")
run.universal("photo.png")        # probabilities, (images, classes)
{% if experts %}
run.expert("{{ experts[0] }}")("photo.png")     # experts: {{ experts|join(", ") }}
{% endif %}
```

## Configuration

| key | value |
| --- | --- |
{% for key, value in config %}
| {{ key }} | {{ value|plain }} |
{% endfor %}

Versions: {{ versions }}.
"""


def write_card(directory: Path) -> Path:
    """Write ``MODEL_CARD.md`` of a run that is over, and return where.

    Raises
    ------
    DataError
        If there is no run in the directory, or a file in it is damaged.
    """
    with whole(directory / CARD) as part:
        part.write_text(card(read_run(directory)), encoding="utf-8")
    return directory / CARD


@cache
def _template() -> Template:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["plain"] = plain
    return environment.from_string(TEMPLATE)


def card(record: RunRecord) -> str:
    """Return the card of a run that is over; raise `DataError` if its ``config.toml`` is not whole."""
    record = _whole(record)
    task = record.settings["task"]
    experts = by_name(path.stem.removeprefix("expert-") for path in record.directory.glob("experts/*.safetensors"))
    text = _template().render(
        method=record.config["method"],
        dataset=record.config["dataset"],
        kinds=_kinds(experts),
        shape=task["input-shape"],
        classes=task["classes"],
        class_names=quoted(task["classes"]),
        version=disue.__version__,
        ending=ending(record),
        source=_source(record),
        clients=counted(len(record.clients), "client"),
        examples=_in_all(sum(client.examples for client in record.clients)),
        mean=_numbers(task["mean"]),
        std=_numbers(task["std"]),
        accuracies=_accuracies(record),
        average=AVERAGE if has_own_average(record) else "",
        clusters=_clusters(record) if experts else [],
        some=any(client.expert is None for client in record.clients),
        prior=_prior(record),
        privacy=privacy(record),
        limits=_limits(record, experts),
        experts=experts,
        gates=METHODS[record.config["method"]].needs.prototypes,
        config=_highlights(record),
        versions=", ".join(f"{name} {number}" for name, number in record.settings["versions"].items()),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _whole(record: RunRecord) -> RunRecord:
    settings, path = record.settings, record.directory / "config.toml"
    missing = {"classes", "input-shape", "mean", "std"} - settings.get("task", {}).keys()
    if missing or "versions" not in settings:
        lacks = f"[task] lacks {', '.join(sorted(missing))}" if missing else "there are no [versions]"
        raise DataError(f"'{path}' is damaged ({lacks}); {ADVICE}")
    try:
        run = RunConfig.from_flower(settings["run"]).to_flower()
    except ConfigError as error:
        raise DataError(f"'{path}': {error}; {OTHER_VERSION}") from None
    return replace(record, settings={**settings, "run": run})


def plain(text: object) -> str:
    r"""Return text that Markdown shows as it is, on one line and inside a cell of a table.

    Examples
    --------
    >>> print(plain("a|b <i>*c*"))
    a\|b \<i\>\*c\*
    """
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _kinds(experts: list[str]) -> str:
    return f"A universal model and {counted(len(experts), 'expert')}" if experts else "A universal model"


def _source(record: RunRecord) -> str:
    config = record.config
    if config["dataset"] == OWN:
        return "Each client trained on data of its own, which the server never had."
    return f"A simulation: the dataset {config['dataset']}, divided among clients (scenario {config['scenario']})."


def _in_all(examples: int) -> str:
    if not examples:
        return "with numbers of training examples that they kept to themselves"
    return f"with {counted(examples, 'training example')} in all"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _accuracies(record: RunRecord) -> list[dict[str, str]]:
    own = "each client's own test data, mean over clients"
    server = own if record.config["dataset"] == OWN else "the balanced test set of the server"
    rows = [("universal model", "universal_accuracy", "the clients' test examples" if server == own else server)]
    own_model = ("own expert", "expert_accuracy", own)
    prefix = "universal_accuracy_"
    rows += [
        (f"universal model, {key.removeprefix(prefix)}", key, rows[0][2])
        for key in record.summary
        if key.startswith(prefix)
    ]
    rows += [
        (AVERAGE, "average_accuracy", server),
        own_model,
        ("own expert, worst tenth of the clients", "worst_decile_accuracy", own),
        ("own expert after local fine-tuning", "personal_accuracy", own),
    ]
    known = [(name, key, *measured(record, key), on) for name, key, on in rows]
    for method, summary in record.baselines.items():
        same = f"{method} with the same clients and seed"
        used = ("the model that a client uses", *own_model[1:])
        known += [(f"{same}: {name}", key, summary.get(key), "", on) for name, key, on in (rows[0], used)]
    return [
        {
            "name": name,
            "value": percent(value),
            "interval": in_words(of_metric(record, key, value)) or "–",
            "on": f"{on}{remark}",
        }
        for name, key, value, remark, on in known
        if value is not None
    ]


def _clusters(record: RunRecord) -> list[dict[str, Any]]:
    members: dict[int, list[ClientRow]] = {}
    for client in record.clients:
        if client.cluster is not None:
            members.setdefault(client.cluster, []).append(client)
    return [
        {
            "name": cluster,
            "clients": len(own),
            "examples": f"{sum(client.examples for client in own):,}" if own[0].examples else "–",
            "labels": _labels(record, {client.name for client in own}),
            "universal": percent(_mean([client.universal for client in own])),
            "expert": percent(_mean([client.expert for client in own])),
            "worst": percent(min((c.expert for c in own if c.expert is not None), default=None)),
        }
        for cluster, own in sorted(members.items())
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _labels(record: RunRecord, clients: set[str]) -> str:
    """Return the most frequent classes of some clients with their shares, or how many clients have them."""
    labels = record.arrays.get("labels")
    known = [name in clients for name in record.names.get("labels", [])]
    if labels is None or not any(known):
        return "–"
    counts = labels[known].sum(axis=0)
    names = record.class_names(len(counts))
    most = [i for i in np.argsort(-counts, kind="stable")[:MOST_CLASSES] if counts[i] >= counts.sum() / 200]
    if record.config["share-label-counts"]:
        return ", ".join(f"{names[i]} ({100 * counts[i] / counts.sum():.0f} %)" for i in most)
    return ", ".join(f"{names[i]} ({counted(int(counts[i]), 'client')})" for i in most)


def _prior(record: RunRecord) -> str:
    config = record.config
    if config["local-loss"] == "balanced":
        return "with its own label shares put in"
    if METHODS[config["method"]].uses.cluster_priors and config["expert-prior"] == "client":
        return "with its own label shares in place of the cluster's, where these are known"
    return "as it is"


def _limits(record: RunRecord, experts: list[str]) -> list[str]:
    shape = record.settings["task"]["input-shape"]
    limits = [
        f"All images are resized to {shape} without keeping proportions, and each is given one of the classes above, "
        "whatever it shows. Nothing was measured on other data than those named."
    ]
    worst, remark = measured(record, "worst_decile_accuracy")
    if worst is not None:
        limits.append(
            f"The tenth of the clients that it serves least has an own expert that is right on {percent(worst)} "
            f"only{remark}."
        )
    if why := METHODS[record.config["method"]].supports.no_universal:
        limits.append(why)
    if (confusion := record.arrays.get("confusion")) is not None and confusion.size:
        recalls = confusion.diagonal() / confusion.sum(axis=1).clip(min=1)
        label = int(recalls.argmin())
        name = record.class_names(len(recalls))[label]
        limits.append(f"The universal model is weakest on class '{name}': it finds {percent(float(recalls[label]))}.")
    if experts and record.config["local-loss"] != "balanced":
        limits.append(
            "An expert carries the label shares of its cluster: it expects what is common there, and is no model for "
            "anyone."
        )
    kept = int(total_of(record, "guard_kept_average"))
    if kept:
        limits.append(f"The average was kept in place of the distilled model {counted(kept, 'time')}.")
    if (record.directory / GATE).exists():
        limits.append(
            f"{GATE} holds what clients told of their data: mean features, and label counts where they are "
            "shared. Think before you publish it; the models work without it."
        )
    return limits


def _highlights(record: RunRecord) -> list[tuple[str, object]]:
    defaults = RunConfig().to_flower()
    return [
        (key, value)
        for key, value in record.config.items()
        if key in SHOWN or (key not in PLACES and defaults.get(key) != value)
    ]
