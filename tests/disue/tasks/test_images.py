"""Images that are shifted: views of a proxy set."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from disue.tasks import ImageClassification


def task_of(*shape: int) -> ImageClassification:
    return ImageClassification(("a", "b"), shape, (0.0,) * shape[0], (1.0,) * shape[0])  # type: ignore[arg-type]


def smooth(count: int, *shape: int) -> Tensor:
    """Return images that can be shifted by parts of pixels with little loss."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *shape))
    return torch.from_numpy(ndimage.gaussian_filter(x, (0, 0, 2, 2), mode="nearest")).float()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 16), (1, 8, 8)], ids=str)
def test_every_image_is_shifted_by_itself_as_scipy_does(shape: tuple[int, int, int]) -> None:
    x = smooth(50, *shape)
    found = task_of(*shape).augmented(x, 0.1, torch.Generator().manual_seed(1))
    moves = 0.1 * (2.0 * torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) - 1.0)
    for before, after, (right, down) in zip(x, found, moves.tolist(), strict=True):
        by = (0, -down * shape[1], -right * shape[2])
        expected = ndimage.shift(before.numpy(), by, order=3, mode="nearest")
        np.testing.assert_allclose(after.numpy(), expected, atol=0.15 * float(before.std()))
    assert float((found - x).abs().mean()) > 0.05 * float(x.std()), "or the test shows nothing"


def test_what_becomes_free_is_filled_with_the_edge() -> None:
    x = torch.linspace(1.0, 2.0, 12).expand(40, 1, 12, 12)
    found = task_of(1, 12, 12).augmented(x, 0.5, torch.Generator().manual_seed(1))
    right = 12.0 * (torch.rand(40, 2, generator=torch.Generator().manual_seed(1))[:, 0] - 0.5)
    far = (right > 3.0).nonzero().flatten()
    assert len(far) > 3
    torch.testing.assert_close(found[far, :, :, -2:], torch.full((len(far), 1, 12, 2), 2.0))


def test_equal_random_numbers_give_equal_images() -> None:
    x = smooth(5, 1, 8, 8)
    first, second, other = (task_of(1, 8, 8).augmented(x, 0.1, torch.Generator().manual_seed(i)) for i in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
