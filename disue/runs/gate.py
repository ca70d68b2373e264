"""What a run keeps so that an expert can be chosen afterwards, for an image or for a new client."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disue.covariance import MOST_FEATURES, looked_at
from disue.discriminant import UNKNOWN, Discriminant, Normal, gate_weights
from disue.early import early_features
from disue.errors import DataError
from disue.files import ADVICE, NOT_PARSED, OTHER_MODEL, read_tensors, write_tensors
from disue.metrics import predict_logits
from disue.models import Classifier, OtherParametersError, State, filled_model
from disue.prototypes import nearest_prototypes, spread
from disue.tasks import Task

GATE = "gate.safetensors"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Knowledge:
    """What the clients behind one expert told of their data.

    Attributes
    ----------
    cluster : int
    label_counts : (1, classes) tensor
        Of all of them together; in runs of format 1 a row for each client.
    points : (1, classes, features) tensor
        Their mean features of each class; likewise.
    space : int
        Which of the gate's spaces the prototypes are in.
    log_prior : (classes,) tensor or None
        Log label shares of the cluster, where they are known.
    """

    cluster: int
    label_counts: Tensor
    points: Tensor
    space: int
    log_prior: Tensor | None = None


@dataclass(frozen=True)
class Space:
    """A feature space.

    Attributes
    ----------
    model : str
        The architecture of the model whose features they are.
    state : State
        Its parameters.
    covariance : (features, features) tensor or None
        Of features within classes; None in runs of format 1, whose gate takes the nearest prototype.
    background : Normal or None
        See `Discriminant`.
    early : int
        How many early features of the model there are (`disue.early`); 0: they are those of its body.
    """

    model: str
    state: State
    covariance: Tensor | None = None
    background: Normal | None = None
    early: int = 0

    def check(self, size: int) -> None:
        """Raise ValueError if it does not fit so many features."""
        found: list[tuple[str, Tensor, tuple[int, ...]]] = []
        if self.covariance is not None:
            found.append(("covariance", self.covariance, (size, size)))
        if self.background is not None:
            found += [("background", self.background.covariance, (size, size)), ("mean", self.background.mean, (size,))]
        for what, tensor, shape in found:
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(f"the {what} of a space is {tensor.dtype} {tuple(tensor.shape)}")
            if tensor.ndim == 2 and int(torch.linalg.cholesky_ex(tensor.double()).info):
                raise ValueError(f"the {what} of a space is none")


@dataclass(frozen=True)
class Gate:
    """What the experts' clients told of their data: with every update, and before they trained.

    Attributes
    ----------
    spaces : list of Space
        Of the architectures; in runs of format 1 of the rounds in which the clients were last sampled.
    experts : dict of expert to Knowledge
    signature : str
        The signature that clients were clustered by, if it needs no training; empty: none.
    descriptions : dict of client to tensor
        That signature of each client.
    clusters : dict of client to cluster
        Of the clients in ``descriptions``.
    seed : int
        The run seed.
    """

    spaces: list[Space] = field(default_factory=list)
    experts: dict[str, Knowledge] = field(default_factory=dict)
    signature: str = ""
    descriptions: dict[str, Tensor] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)
    seed: int = 0

    def log_densities(self, x: Tensor, task: Task) -> Tensor:
        """Return how likely inputs are as one of each class of each expert's clients, (experts, samples, classes).

        See `Discriminant`.

        Parameters
        ----------
        x : (samples, *shape) tensor
            Normalised.
        task : Task
        """
        found: dict[int, Tensor] = {}
        for number, space in enumerate(self.spaces):
            members = [own for own in self.experts.values() if own.space == number]
            features = self.features(number, x, task)
            if space.covariance is None:
                each = [nearest_prototypes(features, own.label_counts, own.points) for own in members]
                densities = -torch.stack(each) / self._unit(number)
                found[number] = densities.clamp(min=UNKNOWN)
            else:
                counts = torch.cat([own.label_counts for own in members])
                points = torch.cat([own.points for own in members])
                alike = Counter(own.cluster for own in members)
                shares = torch.tensor([1.0 / alike[own.cluster] for own in members]) if space.early else None
                among = Discriminant(counts, points, space.covariance, space.background, shares)
                found[number] = among.log_densities(features if space.early else looked_at(features))
        rows = {number: iter(own) for number, own in found.items()}
        return torch.stack([next(rows[own.space]) for own in self.experts.values()])

    def weights(self, x: Tensor, task: Task) -> Tensor:
        """Return how probable the clusters of the experts are for each input, (samples, experts)."""
        densities = self.log_densities(x, task)
        if any(space.covariance is None for space in self.spaces):
            return torch.softmax(densities.amax(dim=2), dim=0).T
        return gate_weights(densities).squeeze(2).T

    def choose(self, x: Tensor, task: Task) -> list[str]:
        """Return, for each input, the expert of the cluster that is most probable; see `log_densities`.

        Where the cluster has experts of several architectures it is that of the run's own.
        """
        main: dict[int, str] = {}
        for name, own in self.experts.items():
            main.setdefault(own.cluster, str(own.cluster) if str(own.cluster) in self.experts else name)
        weights = self.weights(x, task)
        rows = torch.tensor([list(main).index(own.cluster) for own in self.experts.values()]).expand(len(x), -1)
        how = "amax" if any(space.covariance is None for space in self.spaces) else "sum"
        by_cluster = torch.zeros(len(x), len(main)).scatter_reduce(1, rows, weights, how)
        return [list(main.values())[i] for i in by_cluster.argmax(dim=1).tolist()]

    def features(self, space: int, x: Tensor, task: Task) -> Tensor:
        """Return the features of normalised inputs in one of the spaces, (samples, features)."""
        network, early = self.network(space, task), self.spaces[space].early
        return early_features(network, x, CPU, early) if early else predict_logits(network.body, x, CPU)

    def network(self, space: int, task: Task) -> Classifier:
        """Return the model whose features one of the spaces is of."""
        own = self.spaces[space]
        return filled_model(own.model, task.shape, task.num_outputs, own.state, self.seed)

    def _unit(self, space: int) -> float:
        members = [own for own in self.experts.values() if own.space == space]
        counts, points = (torch.cat([getattr(own, key) for own in members]) for key in ("label_counts", "points"))
        return max(spread(counts, points), 1e-12)

    def save(self, directory: Path) -> None:
        """Write ``gate.safetensors``."""
        tensors: dict[str, Tensor] = {}
        for number, space in enumerate(self.spaces):
            tensors |= {f"space.{number}.{name}": tensor for name, tensor in space.state.items()}
            if space.covariance is not None:
                tensors[f"covariance.{number}"] = space.covariance
            if space.background is not None:
                tensors[f"background.{number}.mean"] = space.background.mean
                tensors[f"background.{number}.covariance"] = space.background.covariance
        for name, own in self.experts.items():
            tensors |= {f"expert.{name}.counts": own.label_counts, f"expert.{name}.prototypes": own.points}
            if own.log_prior is not None:
                tensors[f"expert.{name}.log-prior"] = own.log_prior
        if self.descriptions:
            tensors["descriptions"] = torch.stack(list(self.descriptions.values()))
        about = {
            "spaces": [space.model for space in self.spaces],
            "early": [space.early for space in self.spaces],
            "experts": {name: {"cluster": own.cluster, "space": own.space} for name, own in self.experts.items()},
            "signature": self.signature,
            "clusters": {name: self.clusters[name] for name in self.descriptions},
        }
        write_tensors(directory / GATE, tensors, about)

    @classmethod
    def load(cls, directory: Path, task: Task, seed: int) -> "Gate | None":
        """Read ``gate.safetensors`` of a run with this seed; None: it has none.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        path = directory / GATE
        if not path.exists():
            return None
        tensors, about = read_tensors(path)
        try:
            gate = replace(_parse(tensors, about), seed=seed)
            gate._check(task)
        except DataError as error:
            raise DataError(f"'{path}': {error}") from None
        except OtherParametersError as error:
            raise DataError(f"'{path}' does not fit ({error}); {OTHER_MODEL}") from None
        except (*NOT_PARSED, RuntimeError) as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"'{path}' is damaged ({what}); {ADVICE}") from None
        return gate

    def _check(self, task: Task) -> None:
        """Raise ValueError if it does not fit the task."""
        none = torch.zeros(1, *task.shape)
        features = [self.features(number, none, task).shape[1] for number in range(len(self.spaces))]
        features = [
            size if space.covariance is None or space.early else min(size, MOST_FEATURES)
            for size, space in zip(features, self.spaces, strict=True)
        ]
        for space, size in zip(self.spaces, features, strict=True):
            space.check(size)
        for name, own in self.experts.items():
            expected = (len(own.points), task.num_strata, features[own.space])
            prior = (task.num_outputs,) if own.log_prior is None else tuple(own.log_prior.shape)
            shapes = (tuple(own.points.shape), tuple(own.label_counts.shape), prior)
            if not len(own.points) or shapes != (expected, expected[:2], (task.num_outputs,)):
                raise ValueError(f"what it knows of expert {name} does not fit: {shapes}")
            for tensor in (own.points, own.label_counts, own.log_prior):
                if tensor is not None and tensor.dtype != torch.float32:
                    raise ValueError(f"what it knows of expert {name} is {tensor.dtype}")
        for number in range(len(self.spaces)):
            self._unit(number)


def _parse(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Gate:
    early = about.get("early", [0] * len(about["spaces"]))  # before format 3 there were none
    if not all(type(count) is int and count >= 0 for count in early):
        raise ValueError(f"the early features are {early}")
    spaces = [
        Space(
            str(model),
            {name.removeprefix(f"space.{i}."): t for name, t in tensors.items() if _of_space(name, i)},
            tensors.get(f"covariance.{i}"),
            _background(tensors, i),
            count,
        )
        for i, (model, count) in enumerate(zip(about["spaces"], early, strict=True))
    ]
    experts = {
        name: Knowledge(
            int(own["cluster"]),
            tensors[f"expert.{name}.counts"],
            tensors[f"expert.{name}.prototypes"],
            int(own["space"]),
            tensors.get(f"expert.{name}.log-prior"),
        )
        for name, own in about["experts"].items()
    }
    clusters = {str(name): int(cluster) for name, cluster in about["clusters"].items()}
    descriptions = dict(zip(clusters, tensors["descriptions"], strict=True)) if clusters else {}
    return Gate(spaces, experts, str(about["signature"]), descriptions, clusters)


def _background(tensors: Mapping[str, Tensor], number: int) -> Normal | None:
    key = f"background.{number}"
    return Normal(tensors[f"{key}.mean"], tensors[f"{key}.covariance"]) if f"{key}.mean" in tensors else None


def _of_space(name: str, number: int) -> bool:
    return name.startswith(f"space.{number}.")
