"""Tasks: what inputs and targets are, and what follows from that."""

from disue.tasks.agreement import DataSummary, agree
from disue.tasks.images import Shape, Task

__all__ = ["DataSummary", "Shape", "Task", "agree"]
