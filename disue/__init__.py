"""DisUE: clustered federated learning with a distilled universal expert, on Flower."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from disue.runs.reading import load_run as load_run

__all__ = ["load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `load_run` when it is asked for: it needs PyTorch, and the command's help does not."""
    if name == "load_run":
        from disue.runs.reading import load_run

        return load_run
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
