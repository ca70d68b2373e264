"""Datasets, scenarios (how clients differ) and the federation that they make together."""

from disue.data.datasets import DATASETS, Dataset, Examples, load_dataset
from disue.data.federation import ClientData, Federation, build_federation
from disue.data.scenarios import SCENARIOS

__all__ = [
    "DATASETS",
    "SCENARIOS",
    "ClientData",
    "Dataset",
    "Examples",
    "Federation",
    "build_federation",
    "load_dataset",
]
