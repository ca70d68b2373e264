"""Mini-batches of examples in some order."""

from torch import Tensor


def batches(order: Tensor, size: int, least: int = 1) -> list[Tensor]:
    """Return indices in batches of so many, the last with what is left.

    Parameters
    ----------
    order : (examples,) int64 tensor
    size : int
    least : int (default: 1)
        A batch has at least so many, as far as there are examples: a smaller last one is part of the one before. A
        network with statistics can learn nothing of one example.
    """
    parts = list(order.split(max(size, least)))
    if len(parts) > 1 and len(parts[-1]) < least:
        parts[-2:] = [order[-len(parts[-2]) - len(parts[-1]) :]]
    return parts
