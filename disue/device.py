"""Where tensors live, and the settings that make a computation repeatable there."""

import torch

from disue.errors import ConfigError


def prepare_device(name: str) -> torch.device:
    """Return the device for the config value ``device`` and make torch repeatable on it.

    One thread computes on the CPU: several clients share the cores as processes, more threads than
    cores are many times slower, and sums then do not depend on the number of cores.

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
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in which a GPU multiplies in bfloat16, which needs no scaling of the loss; a CPU as ever."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
