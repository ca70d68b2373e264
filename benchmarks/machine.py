"""What a measurement was made on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from disue_cli.compare.cells import cores


def machine() -> dict[str, str | int]:
    """Return processor, cores and versions."""
    import torch

    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, str | int] = {
        "processor": names[0] if names else platform.processor(),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("disue", "torch", "flwr", "ray")},
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # the inline engine runs without Ray
        return "none"
