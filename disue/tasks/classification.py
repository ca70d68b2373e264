"""Classification: one of some classes for each input."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from disue.errors import DataError
from disue.naming import LONGEST_NAME, by_name, normal_name, quoted
from disue.tasks.base import Task
from disue.tasks.losses import CrossEntropy, Loss

MOST_CLASSES = 2**16
MANY_CLASSES = 10
FEW_EXAMPLES = 3
"""Of each class, on average: where there are many classes and no more examples, no classifier learns them."""


PRIOR_PSEUDO_COUNT = 0.1
CROSS_ENTROPY = CrossEntropy()


class Classification(Task):
    """Logits of classes for each example; targets are (examples,) int64. A stratum is a class.

    Attributes
    ----------
    class_names : tuple of str
        In the order of the model's outputs.
    """

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """One logit for each class."""
        return self.num_classes

    @property
    def loss(self) -> Loss:
        """Cross-entropy."""
        return CROSS_ENTROPY

    @property
    def loss_unit(self) -> float:
        """Of a guess among the classes."""
        return math.log(self.num_classes)

    @property
    def num_strata(self) -> int:
        """One for each class."""
        return self.num_classes

    def strata(self, targets: Tensor) -> Tensor:
        """Return the class of each example."""
        return targets

    @property
    def scores_strata(self) -> bool:
        """Each class has its logit."""
        return True

    def predicted_strata(self, outputs: Tensor) -> Tensor:
        """Return the class with the largest logit."""
        return outputs.argmax(dim=1)

    def log_prior(self, targets: Tensor) -> Tensor:
        """Return the log label shares."""
        return log_prior(self.count_strata(targets))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The accuracy."""
        return ("accuracy",)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Return the accuracy: the share of examples whose class has the largest logit."""
        return {"accuracy": float((self.predicted_strata(outputs) == targets).double().mean())}

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return T² KL(teacher || student) in nats, of logits that are divided by the temperature T.

        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
        """
        student, soft = (F.log_softmax(logits / temperature, dim=1) for logits in (outputs, teacher))
        return temperature**2 * F.kl_div(student, soft, log_target=True, reduction="batchmean")

    def to_settings(self) -> dict[str, object]:
        """Return the names of the classes, too."""
        return {"classes": list(self.class_names), **super().to_settings()}

    def indices(self, class_names: Sequence[str]) -> Tensor:
        """Return the outputs that belong to these classes, (classes,) int64.

        Raises
        ------
        DataError
            If the task does not have one of them.
        """
        require_known(class_names, self.class_names)
        return torch.tensor([self.class_names.index(name) for name in class_names], dtype=torch.int64)


def log_prior(label_counts: Tensor) -> Tensor:
    """Return log label shares, with a small pseudo-count so that a missing class stays finite.

    ``label_counts``: (..., classes), examples per class; the result has the same shape.
    """
    counts = label_counts.to(torch.float32) + PRIOR_PSEUDO_COUNT
    return torch.log(counts / counts.sum(dim=-1, keepdim=True))


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
