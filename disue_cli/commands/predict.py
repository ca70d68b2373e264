"""`disue predict`: what the models of a run say of images."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from disue.data.inputs import Inputs, read_inputs
from disue.errors import one_line
from disue.runs.reading import Run, load_run
from disue.tasks import ImageClassification
from disue_cli.terminal import say

AUTO = "auto"
CLEARLY = 0.2
"""How much nearer to the run's mean brightness (0..1) images must be when inverted, so that it is worth a hint."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the first being the most probable, and which model says so."""

    image: str
    expert: str
    classes: list[tuple[str, float]]


def predict(directory: Path, paths: Sequence[Path], expert: str, top: int, form: str, invert: bool) -> None:
    """Print what a run's models say of images; see ``disue predict --help``.

    Raises
    ------
    ConfigError
        If there is no such expert, or none can be chosen.
    DataError
        If there is no finished run, it is damaged, or an image cannot be read.
    """
    run = load_run(directory)
    inputs = read_inputs(paths, run.task.shape)
    if invert:
        inputs = Inputs(inputs.names, 1.0 - inputs.pixels)
    elif hint := inversion_hint(inputs.pixels, run.task):
        say(f"disue: {hint}", error=True)
    predictions = classify(run, inputs, expert, top)
    {"table": _print_table, "json": _print_json, "csv": _print_csv}[form](predictions)


def classify(run: Run, inputs: Inputs, expert: str, top: int) -> list[Prediction]:
    """Return the ``top`` most probable classes of each image.

    ``expert``: the name of a model, or ``auto``, which takes for each image the expert that suits it.
    """
    chosen = run.choose(inputs.pixels) if expert == AUTO else [run.model(expert).name] * len(inputs.names)
    probabilities = torch.empty(len(chosen), run.task.num_classes)
    for name in dict.fromkeys(chosen):
        own = [i for i, other in enumerate(chosen) if other == name]
        probabilities[own] = run.model(name)(inputs.pixels[own])
    values, labels = probabilities.topk(min(top, run.task.num_classes), dim=1)
    return [
        Prediction(image, name, [(run.task.class_names[i], p) for i, p in zip(row, shares, strict=True)])
        for image, name, row, shares in zip(inputs.names, chosen, labels.tolist(), values.tolist(), strict=True)
    ]


def inversion_hint(pixels: Tensor, task: ImageClassification) -> str:
    """Return a hint where grey images look like negatives of what the run was trained on, else an empty string."""
    mean, usual = float(pixels.mean()), task.mean[0]
    if task.shape[0] != 1 or abs(mean - usual) < abs(1.0 - mean - usual) + CLEARLY:
        return ""
    kinds = ("dark", "light") if mean > usual else ("light", "dark")
    return (
        f"these images have a mean brightness of {mean:.2f} and the run's data {usual:.2f}; "
        f"if they are {kinds[0]} on {kinds[1]} and the run's are not, use --invert"
    )


def _print_table(predictions: Sequence[Prediction]) -> None:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("expert")
    for rank in range(len(predictions[0].classes)):
        table.add_column("class" if rank == 0 else f"{rank + 1}.")
        table.add_column("probability" if rank == 0 else "", justify="right")
    for one in predictions:
        table.add_row(
            one_line(one.image), one.expert, *(word for name, p in one.classes for word in (name, f"{p:.3f}"))
        )
    Console(highlight=False, markup=False).print(table)


def _print_json(predictions: Sequence[Prediction]) -> None:
    rows = [
        {
            "image": one.image,
            "expert": one.expert,
            "classes": [{"class": name, "probability": round(p, 6)} for name, p in one.classes],
        }
        for one in predictions
    ]
    say(json.dumps(rows, indent=1))


def _print_csv(predictions: Sequence[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "expert", "rank", "class", "probability"])
    for one in predictions:
        writer.writerows(
            [one.image, one.expert, rank, name, f"{p:.6f}"] for rank, (name, p) in enumerate(one.classes, start=1)
        )
