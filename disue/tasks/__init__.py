"""Tasks: what inputs and targets are, and what follows from that."""

from disue.tasks.agreement import DataSummary, agree
from disue.tasks.base import ImageShape, Shape, Task
from disue.tasks.classification import Classification
from disue.tasks.images import ImageClassification
from disue.tasks.regression import Regression

__all__ = [
    "Classification",
    "DataSummary",
    "ImageClassification",
    "ImageShape",
    "Regression",
    "Shape",
    "Task",
    "agree",
]
