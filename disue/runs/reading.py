"""A run that is over, to be used: its models, and what says which of them suits an image.

>>> from disue import load_run
>>> run = load_run("runs/first")                    # doctest: +SKIP
>>> run.universal("photo.png")                      # doctest: +SKIP
>>> run.expert(2)(x), run.choose(x)                 # doctest: +SKIP
"""

import csv
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disue.config import StoredConfig
from disue.data.inputs import Images, to_pixels
from disue.errors import ConfigError, DataError
from disue.files import ADVICE, OTHER_MODEL, UNNUMBERED, read_tensors, read_text, run_settings, run_summary, user_path
from disue.metrics import predict_logits
from disue.models import Classifier, OtherParametersError, filled_model, named_model
from disue.naming import by_name
from disue.registry import suggestion
from disue.runs.gate import Gate
from disue.tasks import ImageClassification, ImageShape

UNIVERSAL = "universal"
EXPERT = "expert-"
ENDED_EARLY = ("stopped", "failed")
"""What a run is called that did not come to its last round; its models, if it has any, are of the last good one."""


class PixelModel(nn.Module):
    """A network that takes pixels: (batch, channels, height, width) in 0..1 -> (batch, classes) logits."""

    def __init__(self, network: Classifier, task: ImageClassification) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(task.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(task.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Model:
    """One of a run's models, ready for images.

    Attributes
    ----------
    name : str
        ``universal``, or the expert's.
    architecture : str
        A name in `disue.models.MODELS`.
    task : ImageClassification
        Its class names are those of the outputs.
    module : PixelModel
        The network, with the normalisation before it.
    """

    name: str
    architecture: str
    task: ImageClassification
    module: PixelModel

    def __call__(self, x: Images) -> Tensor:
        """Return class probabilities, (images, classes).

        Parameters
        ----------
        x : path, list of paths, array or tensor
            Image files, folders of images and ``.npz`` files; or (images, height, width), (images, height, width,
            channels) or (images, channels, height, width), uint8 from 0 to 255 or floats from 0 to 1, of any size: all
            are converted to ``task.shape`` as the clients' own images are. Not normalised: that is done here.

        Raises
        ------
        DataError
            If these are no images.
        """
        return torch.softmax(self.logits(x), dim=1)

    def logits(self, x: Images) -> Tensor:
        """Return logits, (images, classes); see `__call__`."""
        return predict_logits(self.module, to_pixels(x, self.task.shape), torch.device("cpu"))

    def classify(self, x: Images) -> list[str]:
        """Return the name of the most probable class of each image; see `__call__`."""
        return [self.task.class_names[i] for i in self.logits(x).argmax(dim=1).tolist()]


@dataclass(frozen=True)
class Run:
    """A run that is over: completed, or with the models of the round after which it ended early (``summary``).

    Attributes
    ----------
    directory : Path
    format : int
        The number of the directory's format; see `disue.files.RUN_FORMAT`.
    config : StoredConfig
        Resolved: every key of ``config.toml`` is an attribute, the keys of its method, too.
    task : ImageClassification
        Class names, the shape of an input, and how pixels are normalised.
    summary : dict
        ``summary.json``.
    clusters : dict of client to cluster
    universals : list of str
        ``universal``; with several architectures also ``universal-mlp`` and the like.
    experts : list of str
        The experts' names: cluster numbers, and ``0-mlp`` and the like of other architectures.
    gate : Gate or None
        What says which expert suits an image; None where the method keeps nothing of the kind.
    """

    directory: Path
    format: int
    config: StoredConfig
    task: ImageClassification
    summary: dict[str, Any]
    clusters: dict[str, int]
    universals: list[str]
    experts: list[str]
    gate: Gate | None

    @cached_property
    def universal(self) -> Model:
        """The universal expert of the run's own architecture."""
        return self.model(UNIVERSAL)

    def expert(self, name: int | str) -> Model:
        """Return an expert by its name, for most the number of its cluster.

        Raises
        ------
        ConfigError
            If there is no such expert.
        DataError
            If its file is damaged.
        """
        if str(name) not in self.experts:
            there = f"this run has {', '.join(self.experts)}" if self.experts else "this run has none, use 'universal'"
            raise ConfigError(f"expert: '{name}' does not exist{suggestion(str(name), self.experts)}; {there}")
        return self.model(str(name))

    def model(self, name: str) -> Model:
        """Return a model by its name in ``universals`` or ``experts``; see `expert`."""
        if name in self.universals:
            return self._load(name, self.directory / f"{name}.safetensors")
        if name not in self.experts:
            names = [*self.universals, *self.experts]
            raise ConfigError(
                f"expert: '{name}' does not exist{suggestion(name, names)}; choose from {', '.join(names)}"
            )
        return self._load(name, self.directory / "experts" / f"{EXPERT}{name}.safetensors")

    def choose(self, x: Images) -> list[str]:
        """Return the name of the expert that suits each image: the one whose clients have the nearest prototype.

        Raises
        ------
        ConfigError
            If the run has no gate.
        DataError
            If these are no images.
        """
        if self.gate is None or not self.gate.experts:
            names = ", ".join([*self.universals, *self.experts])
            raise ConfigError(
                f"expert: 'auto' needs a gate and this run (method '{self.config.method}') has none; "
                f"choose from {names}"
            )
        return self.gate.choose(self.task.normalise(to_pixels(x, self.task.shape)), self.task)

    def _load(self, name: str, path: Path) -> Model:
        state, about = read_tensors(path)
        try:
            network = filled_model(about["model"], self.task.shape, self.task.num_classes, state, self.config.seed)
        except DataError as error:
            raise DataError(f"'{path}': {error}") from None
        except OtherParametersError as error:
            raise DataError(f"'{path}' does not fit ({error}); {OTHER_MODEL}") from None
        except (KeyError, TypeError, ValueError):
            raise DataError(f"'{path}' is damaged (it does not say which model it is); {ADVICE}") from None
        return Model(name, str(about["model"]), self.task, PixelModel(network, self.task))


def load_run(directory: str | Path) -> Run:
    """Read a run directory; models are read when they are asked for.

    Nothing in it is executed: it is read as TOML, JSON, CSV and safetensors.

    Raises
    ------
    DataError
        If there is no run in the directory, the run ended early without models, a file is missing or damaged, or the
        run is of a newer format, or of a version whose config has other bounds.
    """
    place = user_path(directory)
    if not place.is_dir():
        raise DataError(f"'{place}' is no directory; name the directory of a run")
    if not (place / "config.toml").is_file():
        raise DataError(f"'{place}': there is no run here (config.toml is missing); name the directory of a run")
    config = read_text(place / "config.toml", lambda text: StoredConfig.from_flower(run_settings(text)["run"]))
    number = read_text(place / "config.toml", lambda text: int(run_settings(text).get("format", UNNUMBERED)))
    summary: dict[str, Any] = read_text(place / "summary.json", run_summary, {})
    early = summary.get("status") in ENDED_EARLY and (place / f"{UNIVERSAL}.safetensors").is_file()
    if summary.get("status") != "completed" and not early:
        why = " ".join(str(summary.get("error")).split())
        how = f"it {summary['status']}: {why}" if summary.get("status") else "it goes on, or was ended"
        raise DataError(f"'{place}': this run is not finished ({how}); go on with it (--resume), or name another run")
    _check_models(config, place)
    task = read_text(place / "config.toml", lambda text: _task(run_settings(text)["task"]))
    if not (place / f"{UNIVERSAL}.safetensors").is_file():
        raise DataError(f"'{place / UNIVERSAL}.safetensors' is missing; {ADVICE}")
    return Run(
        directory=place,
        format=number,
        config=config,
        task=task,
        summary=summary,
        clusters=read_text(place / "clients.csv", _clusters),
        universals=_names(place, f"{UNIVERSAL}*.safetensors", r"(universal(?:-[\w.-]+)?)"),
        experts=_names(place, f"experts/{EXPERT}*.safetensors", r"expert-([0-9]{1,9}(?:-[\w.-]+)?)"),
        gate=Gate.load(place, task, config.seed),
    )


def _check_models(config: StoredConfig, directory: Path) -> None:
    for name in (config.model, *config.models_of_clients):
        try:
            named_model(name)
        except DataError as error:
            raise DataError(f"'{directory}': {error}") from None


def _names(directory: Path, pattern: str, form: str) -> list[str]:
    """Return what models are called whose files are called as a run calls them."""
    found = (re.fullmatch(form, path.stem) for path in directory.glob(pattern))
    return by_name(match[1] for match in found if match)


def _task(table: dict[str, Any]) -> ImageClassification:
    """Return the task that ``[task]`` of ``config.toml`` says."""
    names, mean, std = tuple(map(str, table["classes"])), tuple(table["mean"]), tuple(table["std"])
    channels, height, width = (int(size) for size in table["input-shape"].split("x"))
    shape: ImageShape = (channels, height, width)
    return ImageClassification(names, shape, tuple(map(float, mean)), tuple(map(float, std)))


def _clusters(text: str) -> dict[str, int]:
    rows = csv.DictReader(text.splitlines(keepends=True))
    return {row["client"]: int(row["cluster"]) for row in rows if row["cluster"]}
