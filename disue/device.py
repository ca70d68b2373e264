"""Where tensors live, and the settings that make a computation repeatable there."""

from itertools import chain

import torch
from torch import Tensor, nn

from disue.errors import ConfigError


def prepare_device(name: str) -> torch.device:
    """Return the device for the config value ``device`` and make torch repeatable on it.

    One thread computes on the CPU: several clients share the cores as processes, more threads than
    cores are many times slower, and sums then do not depend on the number of cores. A GPU multiplies float32 as
    float32: its TF32, which PyTorch would take in convolutions, keeps ten bits; `mixed-precision` is there for speed.

    Raises
    ------
    ConfigError
        For ``cuda`` where there is no usable GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: got 'cuda'; torch sees no GPU here, use auto or cpu")
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """Return a context in which bfloat16 is multiplied, which needs no scaling of the loss; None: on a GPU alone."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=device.type == "cuda" if enabled is None else enabled
    )


def place(model: nn.Module, device: torch.device, layout: torch.memory_format = torch.contiguous_format) -> None:
    """Move a model to a device, in a layout, if it is not there: to look takes a fraction of the time.

    Not to be called in inference mode: what moves there can no longer be trained.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        there = tensor.device.type == device.type and device.index in (None, tensor.device.index)
        own = layout if tensor.dim() == 4 else torch.contiguous_format  # others have no channels
        if not there or not tensor.is_contiguous(memory_format=own):
            model.to(device, memory_format=layout)  # type: ignore[call-overload]
            return


def memory_format(inputs: Tensor, device: torch.device, mixed: bool) -> torch.memory_format:
    """Return the layout of inputs: of images channels last, if no GPU multiplies them as float32.

    The units of a GPU for bfloat16 want it so, and on a CPU pooling is many times quicker.
    """
    images, exact = inputs.dim() == 4, device.type == "cuda" and not mixed
    return torch.channels_last if images and not exact else torch.contiguous_format
