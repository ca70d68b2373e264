"""How clients with data of their own come to one task: what each says of its data, and what follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from disue.errors import DataError, WireError
from disue.fields import Reals, Texts, fields_of
from disue.naming import by_name, quoted
from disue.tasks.base import ImageShape
from disue.tasks.classification import MOST_CLASSES, checked_class_names, require_known
from disue.tasks.images import ImageClassification

SMALLEST_STD = 1e-3
PIXELS = "part of all clients' mean and deviation, by which inputs are normalised; weighted as `num-examples` says"


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


def agree(
    summaries: Sequence[tuple[float, DataSummary]], shape: ImageShape, class_names: Sequence[str] = ()
) -> ImageClassification:
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
    return ImageClassification(names, shape, tuple(means), tuple(deviations))
