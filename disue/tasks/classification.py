"""Classes: their names, and when labels are none."""

from collections.abc import Sequence

from disue.errors import DataError
from disue.naming import LONGEST_NAME, by_name, normal_name, quoted

MOST_CLASSES = 2**16
MANY_CLASSES = 10
FEW_EXAMPLES = 3
"""Of each class, on average: where there are many classes and no more examples, no classifier learns them."""


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
