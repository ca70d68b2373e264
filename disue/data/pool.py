"""A dataset of a person's own: one folder of classes, or one ``.npz`` file, for a simulation to divide."""

from functools import lru_cache

import torch

from disue.data.datasets import Dataset, Examples
from disue.data.own import open_own
from disue.errors import ConfigError, DataError
from disue.files import user_path
from disue.tasks import ImageShape
from disue.tasks.agreement import SMALLEST_STD

POOL = "path:"
"""What the config value begins with that names one."""
SPLIT_SEED = 0
"""The test part is the same in all runs, as that of every dataset is."""


@lru_cache(maxsize=2)
def load_pool(place: str, shape: ImageShape, test_fraction: float) -> Dataset:
    """Return the images of a folder of classes, or of an ``.npz`` file, in a training and a test part.

    Parameters
    ----------
    place : str
        As `disue.data.own.open_own` has it.
    shape : tuple of int
        Channels, height and width that the images are converted to.
    test_fraction : float
        Share of each class that is the test part.

    Raises
    ------
    ConfigError
        If there are fewer than two classes.
    DataError
        If there is nothing there, a file cannot be used, or there are too few images.
    """
    path = user_path(place, "dataset")
    try:
        split = open_own(str(path), shape, test_fraction, SPLIT_SEED, "dataset", f"'{place}'")
    except DataError as error:
        raise DataError(f"dataset: {error}") from None
    data = split.data
    if len(data.class_names) < 2:
        raise ConfigError(f"dataset: got '{POOL}{place}', which has one class; at least 2 are needed")
    train, test = (Examples(data.x[part], data.y[part]) for part in (split.train, split.test))
    deviation, mean = torch.std_mean(train.x.double(), dim=(0, 2, 3), correction=0)
    return Dataset(
        name=f"{POOL}{path.name}",
        class_names=data.class_names,
        train=train,
        test=test,
        mean=tuple(mean.tolist()),
        std=tuple(deviation.clamp(min=SMALLEST_STD).tolist()),
        maximum=1.0,
    )
