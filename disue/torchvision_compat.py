"""The one place that imports torchvision.

A CUDA build of torchvision beside a CPU-only torch fails at import because its compiled operators are
missing (``operator torchvision::nms does not exist``). Nothing here uses these operators, so their
schemas are declared and the import is tried again; transforms, datasets and models then work.
"""

import logging
from functools import cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)
_kept_alive: list[torch.library.Library] = []


@cache
def torchvision() -> ModuleType:
    """Import torchvision with its ``datasets`` and ``models`` and return it.

    Raises
    ------
    ImportError
        If torchvision is not installed, or fails for another reason than its missing operators.
    """
    try:
        import torchvision.datasets
        import torchvision.models
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
        logger.info("torchvision's compiled operators do not fit this torch; continuing without them")
        import torchvision.datasets
        import torchvision.models
    module: ModuleType = torchvision
    return module


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)
