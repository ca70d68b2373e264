"""Datasets, scenarios (how clients differ) and the federation that they make together."""

from disue.data import from_files as _registers_datasets  # noqa: F401
from disue.data.client_data import ClientData
from disue.data.datasets import DATASETS, OWN, Dataset, Examples, load_dataset, missing_from
from disue.data.federation import Federation, RunData, build_federation
from disue.data.scenarios import SCENARIOS

__all__ = [
    "DATASETS",
    "OWN",
    "SCENARIOS",
    "ClientData",
    "Dataset",
    "Examples",
    "Federation",
    "RunData",
    "build_federation",
    "load_dataset",
    "missing_from",
]
