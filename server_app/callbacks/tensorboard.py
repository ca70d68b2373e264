"""What TensorBoard shows of a run: scalars and clusters by round, and pictures of the proxy set or the generator."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from disue.errors import ConfigError
from disue.files import inside
from disue.tasks import Task
from strategies.distillation.server import SHEET_COLUMNS
from strategies.rounds.stats import RoundStats

DIRECTORY = "tensorboard"
PICTURES = 4 * SHEET_COLUMNS
GROUPS = ("loss", "seconds", "bytes", "clients")
"""Beside the task's metrics: words in a name that put it among its like; what has none is told under `run`."""


def check_tensorboard() -> None:
    """Raise `ConfigError` if TensorBoard is asked for and not there."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard: got True; the package is missing, use false or pip install 'disue[tensorboard]'"
        )


class Events:
    """Writes TensorBoard's event files, flushed after every round.

    Parameters
    ----------
    directory : Path
        The run directory; the files are in its ``tensorboard``.
    task : Task
        Says what the metrics are called, and whether inputs are images.
    proxy : (samples, *shape) tensor or None
        A proxy set that does not change; if it is of images, some are shown once.
    rounds : int (default: 0)
        Those that are over; what was written of later ones is not shown any more.
    """

    def __init__(self, directory: Path, task: Task, proxy: Tensor | None, rounds: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(inside(directory, DIRECTORY), purge_step=rounds + 1)
        self._metric_names = task.metric_names
        if proxy is not None and task.image_shape is not None and not rounds:
            self._show("proxy", pixels_of(proxy[:PICTURES]), 0)

    def after_round(self, row: dict[str, Any], stats: RoundStats) -> None:
        """Write one round.

        Parameters
        ----------
        row : dict
            Its line of ``metrics.jsonl``.
        stats : RoundStats
        """
        number = stats.server_round
        for key, value in row.items():
            if key != "round" and isinstance(value, int | float):
                self._writer.add_scalar(tag_of(key, self._metric_names), value, number)
        if stats.clusters:
            clusters = np.array(list(stats.clusters.values()))
            self._writer.add_histogram("clusters", clusters, number, bins=np.arange(clusters.max() + 2) - 0.5)
        if stats.sheet is not None:
            self._show("generator", stats.sheet.flatten(0, 1), number)
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()

    def _show(self, name: str, pixels: Tensor, number: int) -> None:
        colours = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
        self._writer.add_images(name, colours, number)


def tag_of(key: str, metric_names: Sequence[str]) -> str:
    """Return what a number of a round is called in TensorBoard.

    Examples
    --------
    >>> [tag_of(key, ["accuracy"]) for key in ("universal_accuracy", "seconds_local", "ari")]
    ['accuracy/universal_accuracy', 'seconds/seconds_local', 'run/ari']
    """
    return f"{next((group for group in (*metric_names, *GROUPS) if group in key), 'run')}/{key}"


def pixels_of(inputs: Tensor) -> Tensor:
    """Return normalised inputs as pixels in 0..1: from the least value of all to the greatest."""
    low, high = inputs.min(), inputs.max()
    return (inputs - low) / (high - low).clamp(min=1e-12)
