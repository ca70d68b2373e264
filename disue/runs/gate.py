"""What a run keeps so that an expert can be chosen afterwards, for an image or for a new client."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disue.errors import DataError
from disue.files import ADVICE, NOT_PARSED, OTHER_MODEL, read_tensors, write_tensors
from disue.metrics import predict_logits
from disue.models import Classifier, OtherParametersError, State, filled_model
from disue.prototypes import nearest_prototypes, spread
from disue.tasks import Task

GATE = "gate.safetensors"


@dataclass(frozen=True)
class Knowledge:
    """What the clients behind one expert told of their data.

    Attributes
    ----------
    cluster : int
    label_counts : (clients, classes) tensor
    points : (clients, classes, features) tensor
        Their class prototypes.
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
    """A feature space: the architecture and the parameters of the model whose features they are."""

    model: str
    state: State


@dataclass(frozen=True)
class Gate:
    """The prototypes of the experts' clients, and what clients said of their data before they trained.

    Attributes
    ----------
    spaces : list of Space
        The universal experts that opened the rounds in which the clients were last sampled.
    experts : dict of expert to Knowledge
    signature : str
        The signature that clients were clustered by, if it needs no training; empty: none.
    descriptions : dict of client to tensor
        That signature of each client.
    clusters : dict of client to cluster
        Of the clients in ``descriptions``.
    """

    spaces: list[Space] = field(default_factory=list)
    experts: dict[str, Knowledge] = field(default_factory=dict)
    signature: str = ""
    descriptions: dict[str, Tensor] = field(default_factory=dict)
    clusters: dict[str, int] = field(default_factory=dict)

    def distances(self, x: Tensor, task: Task) -> Tensor:
        """Return how far inputs are from the nearest prototype of each expert's clients, (samples, experts).

        Squared, and divided by how far the prototypes spread in their space, so that spaces can be compared.

        Parameters
        ----------
        x : (samples, *shape) tensor
            Normalised.
        task : Task
        """
        features = [self.features(number, x, task) for number in range(len(self.spaces))]
        units = [self._unit(number) for number in range(len(self.spaces))]
        return torch.stack(
            [
                nearest_prototypes(features[own.space], own.label_counts, own.points).amin(dim=1) / units[own.space]
                for own in self.experts.values()
            ],
            dim=1,
        )

    def choose(self, x: Tensor, task: Task) -> list[str]:
        """Return, for each input, the expert of the cluster whose clients have the nearest prototype; see `distances`.

        Where the cluster has experts of several architectures it is that of the run's own.
        """
        main = [str(own.cluster) if str(own.cluster) in self.experts else name for name, own in self.experts.items()]
        return [main[i] for i in self.distances(x, task).argmin(dim=1).tolist()]

    def features(self, space: int, x: Tensor, task: Task) -> Tensor:
        """Return the features of normalised inputs in one of the spaces, (samples, features)."""
        return predict_logits(self.network(space, task).body, x, torch.device("cpu"))

    def network(self, space: int, task: Task) -> Classifier:
        """Return the model whose features one of the spaces is of."""
        return filled_model(self.spaces[space].model, task.shape, task.num_outputs, self.spaces[space].state)

    def _unit(self, space: int) -> float:
        members = [own for own in self.experts.values() if own.space == space]
        counts, points = (torch.cat([getattr(own, key) for own in members]) for key in ("label_counts", "points"))
        return max(spread(counts, points), 1e-12)

    def save(self, directory: Path) -> None:
        """Write ``gate.safetensors``."""
        tensors: dict[str, Tensor] = {}
        for number, space in enumerate(self.spaces):
            tensors |= {f"space.{number}.{name}": tensor for name, tensor in space.state.items()}
        for name, own in self.experts.items():
            tensors |= {f"expert.{name}.counts": own.label_counts, f"expert.{name}.prototypes": own.points}
            if own.log_prior is not None:
                tensors[f"expert.{name}.log-prior"] = own.log_prior
        if self.descriptions:
            tensors["descriptions"] = torch.stack(list(self.descriptions.values()))
        about = {
            "spaces": [space.model for space in self.spaces],
            "experts": {name: {"cluster": own.cluster, "space": own.space} for name, own in self.experts.items()},
            "signature": self.signature,
            "clusters": {name: self.clusters[name] for name in self.descriptions},
        }
        write_tensors(directory / GATE, tensors, about)

    @classmethod
    def load(cls, directory: Path, task: Task) -> "Gate | None":
        """Read ``gate.safetensors``; None: the run has none.

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
            gate = _parse(tensors, about)
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
        features = [self.network(number, task).head.in_features for number in range(len(self.spaces))]
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
    spaces = [
        Space(str(model), {name.removeprefix(f"space.{i}."): t for name, t in tensors.items() if _of_space(name, i)})
        for i, model in enumerate(about["spaces"])
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


def _of_space(name: str, number: int) -> bool:
    return name.startswith(f"space.{number}.")
