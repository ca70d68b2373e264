"""Where a model is, and what it takes to find out."""

from typing import Any

import pytest
import torch
from torch import nn

from disue.device import memory_format, place


class Watched(nn.Conv2d):
    moves = 0

    def to(self, *arguments: Any, **options: Any) -> "Watched":
        self.moves += 1
        return super().to(*arguments, **options)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_is_moved_once(device: str, layout: torch.memory_format) -> None:
    model = Watched(3, 4, 3)
    model.head = nn.Linear(4, 2)
    for _ in range(3):
        place(model, torch.device(device), layout)
    assert model.moves == (device != "cpu" or layout == torch.channels_last)
    assert model.weight.device.type == model.head.weight.device.type == device
    assert model.weight.is_contiguous(memory_format=layout)


def test_a_model_comes_back_from_another_layout() -> None:
    model = Watched(3, 4, 3)
    weight = model.weight.detach().clone()
    place(model, torch.device("cpu"), torch.channels_last)
    assert not model.weight.is_contiguous()
    place(model, torch.device("cpu"))
    assert model.weight.is_contiguous()
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize(
    ("device", "mixed", "shape", "last"),
    [
        ("cpu", False, (2, 3, 8, 8), True),
        ("cpu", True, (2, 3, 8, 8), True),
        ("cuda", True, (2, 3, 8, 8), True),
        ("cuda", False, (2, 3, 8, 8), False),
        ("cpu", False, (2, 7), False),
    ],
)
def test_images_lie_as_the_device_multiplies_them_fastest(
    device: str, mixed: bool, shape: tuple[int, ...], last: bool
) -> None:
    found = memory_format(torch.zeros(shape), torch.device(device), mixed)
    assert (found == torch.channels_last) == last
