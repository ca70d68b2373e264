"""`disue assign`: which cluster of a run that is over a new client would join, by its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from client_app.describe import DESCRIPTIONS, make_signature
from disue.comparing import scaled_prototypes
from disue.data import Examples
from disue.data.folders import images_below
from disue.data.image_files import read_arrays
from disue.data.inputs import read_inputs
from disue.data.own import read_own
from disue.errors import ConfigError, DataError
from disue.files import ADVICE, user_path
from disue.metrics import evaluate
from disue.models import Classifier, build_model
from disue.naming import quoted
from disue.privacy.sketch import sketch
from disue.runs.gate import GATE, Gate
from disue.runs.reading import Run, load_run
from disue.tasks import Task
from disue_cli.views import number
from strategies.clustering.assignment import nearest_clusters
from strategies.clustering.landmarks import embedding
from strategies.clustering.similarity import SIGNATURES, of_sketches
from strategies.methods.chosen import Chosen
from strategies.methods.disue_settings import DisUESettings
from strategies.methods.settings import ObjectiveSettings, StrategyConfig

CPU = torch.device("cpu")
UNLABELLED = ("subspace",)
"""Signatures that need no labels."""
CENTRED = "initial-prototypes"
NEW = ""
"""What the new client is called among those of the run, whose names are not empty."""


@dataclass(frozen=True)
class Placement:
    """Where a client would be, and why.

    Attributes
    ----------
    cluster : int
    rule : str
        How it was decided, in words.
    meaning : str
        What the similarities are, as the heading of a column.
    similarities : dict of cluster to float
    """

    cluster: int
    rule: str
    meaning: str
    similarities: dict[int, float]


@dataclass(frozen=True)
class NewData:
    """Normalised inputs, (images, channels, height, width), and their classes, (images,), where these are told."""

    x: Tensor
    y: Tensor | None

    @property
    def examples(self) -> Examples:
        """The inputs with their classes; to be asked only where there are classes."""
        assert self.y is not None
        return Examples(self.x, self.y)


def assign(directory: Path, data: Path) -> None:
    """Print which cluster a client with these data would join; see ``disue assign --help``.

    Raises
    ------
    ConfigError
        If the run has no clusters, or nothing by which such data could be assigned.
    DataError
        If there is no finished run, it is damaged, or the data cannot be used.
    """
    run = load_run(directory)
    if not run.experts:
        raise ConfigError(f"method: '{run.config.method}' has one model for all clients and no clusters to join")
    new = read_new(run, user_path(data))
    placement = place(run, new)
    console = Console(highlight=False, markup=False)
    labelled = "labelled" if new.y is not None else "unlabelled"
    console.print(f"{len(new.x)} {labelled} images: cluster {placement.cluster}, by {placement.rule}", soft_wrap=True)
    console.print(_table(run, new, placement))


def read_new(run: Run, data: Path) -> NewData:
    """Return a new client's data as the run's models take them: a folder of classes or of images, or an .npz file.

    Raises
    ------
    DataError
        If they cannot be read, or are of a class that the run does not have.
    """
    task = run.task
    if not _has_labels(data):
        return NewData(task.normalise(read_inputs([data], task.shape).pixels), None)
    try:
        own = read_own(data, task.shape, "it")
    except DataError as error:
        named = str(error).removeprefix(f"'{data.name}'").removeprefix(": ")
        raise DataError(f"'{data}'{'' if named.startswith(' ') else ': '}{named}") from None
    if unknown := [name for name in own.class_names if name not in task.class_names]:
        raise DataError(
            f"'{data}': classes that this run does not have: {quoted(unknown)}; it has {quoted(task.class_names)}"
        )
    return NewData(task.normalise(own.x), task.indices(own.class_names)[own.y])


def _has_labels(data: Path) -> bool:
    if data.is_dir():
        try:
            paths = images_below(data)
        except OSError as error:
            raise DataError(f"'{error.filename}' cannot be read ({error.strerror})") from None
        return any(path.parent != data for path in paths)
    if not data.is_file() or data.suffix.lower() != ".npz":
        raise DataError(f"'{data}' is neither a folder of images nor an .npz file")
    return "y" in read_arrays(data, str(data), {"x"}, {"y"})


def place(run: Run, new: NewData) -> Placement:
    """Return where the new client would be, by the run's own rule if that needs no training, else by what is known.

    Raises
    ------
    ConfigError
        If nothing that is known applies.
    """
    gate, labelled = run.gate or Gate(), new.y is not None
    chose = Chosen(StrategyConfig.of(run.config)).naming(lambda uses: uses.choices)
    if gate.descriptions and (labelled or gate.signature in UNLABELLED):
        return _by_description(run, gate, new)
    if labelled and (chose or not gate.experts):
        return _by_loss(run, new)
    if not gate.experts:
        raise ConfigError(
            f"method: '{run.config.method}' keeps nothing that assigns unlabelled images; name their classes"
        )
    return _by_prototypes(run, gate, new) if labelled else _by_images(run, gate, new)


def _by_description(run: Run, gate: Gate, new: NewData) -> Placement:
    """As the run places newcomers: at the nearest centre of the clients' signatures."""
    config, task = run.config, run.task
    initial = build_model(config.model, task.shape, task.num_classes, config.seed)
    examples = new.examples if new.y is not None else Examples(new.x, torch.zeros(len(new.x), dtype=torch.int64))
    describe = uncentred_prototypes if run.format == 1 and gate.signature == CENTRED else DESCRIPTIONS[gate.signature]
    told = describe(initial, examples, CPU, task, config.share_label_counts)
    kind = SIGNATURES[gate.signature]
    if config.privacy == "secure":
        told, kind = sketch(told, config.sketch_size, config.seed), of_sketches(kind)
    if other := [name for name, known in gate.descriptions.items() if known.shape != told.shape]:
        raise DataError(f"'{run.directory / GATE}' is damaged (what it knows of '{other[0]}' does not fit); {ADVICE}")
    names = [*gate.descriptions, NEW]
    vectors = [*gate.descriptions.values(), told]
    points = dict(zip(names, embedding(kind, vectors, config.seed).points, strict=True))
    likeness = kind.gram([told], vectors)[0]
    return Placement(
        nearest_clusters(points, gate.clusters)[NEW],
        f"the run's signature '{gate.signature}' (nearest centre of a cluster's clients)",
        "likeness",
        _means({name: float(value) for name, value in zip(names, likeness, strict=True)}, gate.clusters),
    )


def uncentred_prototypes(
    initial: Classifier, examples: Examples, device: torch.device, task: Task, share_label_counts: bool
) -> Tensor:
    """Return what `CENTRED` was in runs of format 1: prototypes alone, with the client's mean in them."""
    signature = make_signature(initial, examples, device, task, share_label_counts)
    return scaled_prototypes(signature).view_as(signature.prototypes)


def _by_prototypes(run: Run, gate: Gate, new: NewData) -> Placement:
    """By how probable each cluster is for the images, given their classes."""
    densities = gate.log_densities(new.x, run.task)  # (experts, images, classes)
    classes = new.examples.y.view(1, -1, 1).expand(len(densities), -1, 1)
    shares = torch.softmax(densities.gather(2, classes).squeeze(2), dim=0).mean(dim=1)
    likeness: dict[int, float] = {}
    for own, share in zip(gate.experts.values(), shares.tolist(), strict=True):
        likeness[own.cluster] = likeness.get(own.cluster, 0.0) + share
    return Placement(
        max(likeness, key=likeness.__getitem__),
        f"what the clusters' clients told of their classes ({_why(run)})",
        "likeness",
        likeness,
    )


def _by_images(run: Run, gate: Gate, new: NewData) -> Placement:
    """By where the gate sends most of the images."""
    chosen = [gate.experts[name].cluster for name in gate.choose(new.x, run.task)]
    shares = {own.cluster: chosen.count(own.cluster) / len(chosen) for own in gate.experts.values()}
    return Placement(
        max(shares, key=shares.__getitem__),
        "the gate, which most of the images pass to this cluster (there are no labels)",
        "images",
        shares,
    )


def _by_loss(run: Run, new: NewData) -> Placement:
    """As in IFCA: the expert with the lowest loss on the client's data."""
    prior = _own_prior(run, new) if ObjectiveSettings.of(run.config).local_loss == "balanced" else None
    likeness: dict[int, float] = {}
    for name in run.experts:
        loss = evaluate(run.task, run.model(name).module.network, new.examples, CPU, prior).loss
        cluster = _cluster_of(name)
        likeness[cluster] = max(-loss, likeness.get(cluster, -loss))
    return Placement(
        max(likeness, key=likeness.__getitem__),
        f"the lowest loss of an expert on these images ({_why(run)})",
        "minus the loss",
        likeness,
    )


def _why(run: Run) -> str:
    """Return why it is not decided by a signature of the data."""
    chosen = Chosen(StrategyConfig.of(run.config))
    if chosen.naming(lambda uses: uses.choices):
        return "as the run's clients chose theirs"
    if chosen.signature:
        return f"the run's signature '{run.config.signature}' is of updates, which a new client has not"
    return f"what method '{run.config.method}' clustered clients by, a new client has not"


def _means(values: Mapping[str, float], clusters: Mapping[str, int]) -> dict[int, float]:
    members: dict[int, list[float]] = {}
    for name, cluster in clusters.items():
        members.setdefault(cluster, []).append(values[name])
    return {cluster: sum(own) / len(own) for cluster, own in sorted(members.items())}


def _cluster_of(expert: str) -> int:
    return int(expert.partition("-")[0])


def _own_prior(run: Run, new: NewData) -> Tensor:
    return run.task.log_prior(new.examples.y)


def _shift(run: Run, new: NewData, expert: str) -> Tensor | None:
    """Return what a client of the run would add to its expert's logits; None: nothing."""
    if ObjectiveSettings.of(run.config).local_loss == "balanced":
        return _own_prior(run, new)
    known = run.gate.experts.get(expert) if run.gate else None
    own = DisUESettings.of(run.config).expert_prior == "client"
    if not own or known is None or known.log_prior is None:
        return None
    return _own_prior(run, new) - known.log_prior


def _table(run: Run, new: NewData, placement: Placement) -> Table:
    shifts = {name: _shift(run, new, name) for name in run.experts} if new.y is not None else {}
    shifted = any(shift is not None for shift in shifts.values())
    table = Table()
    table.add_column("model")
    table.add_column("clients", justify="right")
    table.add_column(placement.meaning, justify="right")
    for column in ["accuracy"] * (new.y is not None) + ["with label shares"] * shifted:
        table.add_column(column, justify="right")
    for name in [*run.universals, *run.experts]:
        cells, style = [name, "", ""], None
        if name in run.experts:
            cluster = _cluster_of(name)
            joins = cluster == placement.cluster
            clients = sum(other == cluster for other in run.clusters.values())
            cells = [f"expert {name}{' (joins)' if joins else ''}", str(clients)]
            cells.append(number(placement.similarities.get(cluster)))
            style = "bold" if joins else None
        if new.y is not None:
            network = run.model(name).module.network
            cells.append(number(evaluate(run.task, network, new.examples, CPU).metrics["accuracy"]))
            if (shift := shifts.get(name)) is not None:
                cells.append(number(evaluate(run.task, network, new.examples, CPU, shift).metrics["accuracy"]))
        table.add_row(*cells, style=style)
    return table
