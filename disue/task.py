"""What a run is about: its classes, the shape of an input, and how inputs are normalised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from disue.errors import DataError, WireError
from disue.fields import Reals, Texts, fields_of
from disue.naming import LONGEST_NAME, by_name, normal_name

Shape = tuple[int, int, int]
"""Channels, height and width of one input."""

SMALLEST_SIDE = 4
"""Of an image: the networks halve it twice."""
LARGEST_SIDE = 2048
MOST_CLASSES = 2**16
SMALLEST_STD = 1e-3
PIXELS = "part of all clients' mean and deviation, by which inputs are normalised; weighted as `num-examples` says"
MANY_CLASSES = 10
FEW_EXAMPLES = 3
"""Of each class, on average: where there are many classes and no more examples, no classifier learns them."""


@dataclass(frozen=True)
class Task:
    """What server and clients must agree on to train one model.

    Attributes
    ----------
    class_names : tuple of str
        In the order of the model's outputs.
    shape : tuple of int
        Channels, height and width of one input.
    mean, std : tuple of float
        Per channel, of pixels in 0..1.

    Raises
    ------
    ValueError
        If these are no classes, no shape of images, or numbers that cannot be those of pixels.
    """

    class_names: tuple[str, ...]
    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", checked_class_names(self.class_names))
        channels, *sides = self.shape if len(self.shape) == 3 else (0,)
        if channels not in (1, 3) or not all(1 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError(f"the shape is {self.shape}; expected 1 or 3 channels and sides of at most {LARGEST_SIDE}")
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(f"mean and std have {len(self.mean)} and {len(self.std)} channels, not {channels}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0.0:
            raise ValueError(f"mean {self.mean} and std {self.std} are not those of pixels")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels in 0..1, (examples, channels, height, width), with about zero mean and unit variance."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def indices(self, class_names: Sequence[str]) -> Tensor:
        """Return the outputs that belong to these classes, (classes,) int64.

        Raises
        ------
        DataError
            If the task does not have one of them.
        """
        require_known(class_names, self.class_names)
        return torch.tensor([self.class_names.index(name) for name in class_names], dtype=torch.int64)


@dataclass(frozen=True)
class DataSummary:
    """What a client says of data that are its own, so that a task can be agreed on.

    Attributes
    ----------
    class_names : tuple of str
        The classes that it has examples of.
    mean, std : tuple of float
        Per channel, of the pixels (in 0..1) of its training examples.

    Raises
    ------
    ValueError
        If there is no class, a name is not printable text or comes twice, or the numbers cannot be those of pixels.
    """

    class_names: Annotated[
        tuple[str, ...],
        Texts(
            "the run's classes, where `classes` names none; a client that names more than 100, and more than ten times "
            "as many as the others in the middle, is refused",
            record="config",
            most=MOST_CLASSES,
        ),
    ]
    mean: Annotated[tuple[float, ...], Reals(PIXELS, high=1.0, most=3)]
    std: Annotated[tuple[float, ...], Reals(PIXELS, high=0.5, most=3)]

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", checked_class_names(self.class_names))
        if not len(self.mean) == len(self.std) > 0:
            raise ValueError(f"mean and std have {len(self.mean)} and {len(self.std)} channels")
        # Values in 0..1 deviate from their mean by no more than one half; a hair more is rounding.
        for key in ("mean", "std"):
            field, _ = fields_of(DataSummary)[key]
            try:
                field.check(list(getattr(self, key)), f"the pixels' {key}")
            except WireError as error:
                raise ValueError(str(error)) from None


def checked_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes as they are compared; raise ValueError if they cannot be that."""
    if not 0 < len(names) <= MOST_CLASSES:
        raise ValueError(f"there are {len(names)} class names; expected 1 to {MOST_CLASSES}")
    texts = [normal_name(name) for name in names if isinstance(name, str)]  # on the wire they may be anything
    bad = [name for name in texts if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME]
    if bad or len(set(texts)) < len(names):
        raise ValueError(
            f"the class names are {list(names)!r}; expected printable names, each once, of up to {LONGEST_NAME} letters"
        )
    return tuple(texts)


def require_known(class_names: Sequence[str], known: Sequence[str]) -> None:
    """Raise `DataError` if some classes are none of those that are known."""
    unknown = [name for name in by_name(set(class_names)) if name not in known]
    if unknown:
        raise DataError(
            f"classes that this run does not have: {quoted(unknown)}; it has {quoted(known)}; "
            "name all of them with the run config key 'classes'"
        )


def doubts(num_classes: int, num_examples: int) -> str:
    """Return a warning where there are nearly as many classes as examples, else an empty string.

    Such labels are probably quantities, as in a regression, or the numbers of the examples.
    """
    if num_classes < MANY_CLASSES or num_examples >= FEW_EXAMPLES * num_classes:
        return ""
    return (
        f"{num_classes} classes in {num_examples} examples; if the labels are quantities (a regression target) or "
        "numbers of examples, no classifier can learn them: make a few classes of them"
    )


def quoted(names: Sequence[str], most: int = 20) -> str:
    """Return names for a line of text; of very many only the first."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def agree(summaries: Sequence[tuple[float, DataSummary]], shape: Shape, class_names: Sequence[str] = ()) -> Task:
    """Return the task of clients with data of their own.

    The mean and the deviation are those of all clients' training pixels together.

    Parameters
    ----------
    summaries : sequence of (float, DataSummary)
        Each client's number of training examples, or what counts for it, and what it says of its data.
    shape : tuple of int
        Channels, height and width that all clients convert their images to.
    class_names : sequence of str, optional
        All classes, in order; empty: those that a client has, sorted by name.

    Raises
    ------
    DataError
        If there are fewer than two classes, or a client has one that is not among those named.
    """
    found = by_name({name for _, summary in summaries for name in summary.class_names})
    if class_names:
        require_known(found, class_names)
    names = tuple(class_names or found)
    if len(names) < 2:
        raise DataError(f"the clients together have {len(names)} class ({quoted(names)}); at least 2 are needed")
    total = sum(count for count, _ in summaries)
    means, deviations = [], []
    for channel in range(shape[0]):
        mean = sum(count * summary.mean[channel] for count, summary in summaries) / total
        square = sum(count * (s.std[channel] ** 2 + s.mean[channel] ** 2) for count, s in summaries) / total
        means.append(mean)
        deviations.append(max(math.sqrt(max(square - mean**2, 0.0)), SMALLEST_STD))
    return Task(names, shape, tuple(means), tuple(deviations))
