"""What TensorBoard shows of a run: scalars and clusters by round, and pictures of the proxy set or the generator."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from torch import Tensor

from disue.errors import ConfigError
from disue.files import inside
from server_app.callbacks.base import Callback, RunContext, RunEnd
from server_app.rows import Row
from strategies.distillation.server import SHEET_COLUMNS

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


class Events(Callback):
    """Writes TensorBoard's event files into ``tensorboard`` of the run directory, flushed after every round."""

    def begin(self, run: RunContext) -> None:
        """Open the files. What was written of rounds that are still to do is not shown any more.

        A proxy set of images that does not change is shown once.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(inside(run.directory, DIRECTORY), purge_step=len(run.rows.done) + 1)
        proxy = run.strategy.method.proxy
        if proxy is not None and run.data.task.image_shape is not None and not run.rows.done:
            self._show("proxy", pixels_of(proxy[:PICTURES]), 0)

    def after_round(self, run: RunContext, row: Row) -> None:
        """Write the numbers of a row, the clusters, and generated samples."""
        number, stats = row["round"], run.strategy.stats
        for key, value in row.items():
            if key != "round" and isinstance(value, int | float):
                self.writer.add_scalar(tag_of(key, run.data.task.metric_names), value, number)
        if stats.clusters:
            clusters = np.array(list(stats.clusters.values()))
            self.writer.add_histogram("clusters", clusters, number, bins=np.arange(clusters.max() + 2) - 0.5)
        if stats.sheet is not None:
            self._show("generator", stats.sheet.flatten(0, 1), number)
        self.writer.flush()

    def end(self, run: RunContext, end: RunEnd) -> None:
        """Finish the files."""
        self.writer.close()

    def _show(self, name: str, pixels: Tensor, number: int) -> None:
        colours = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
        self.writer.add_images(name, colours, number)


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
