"""Methods of others in sketch, whose clients keep something from round to round."""

from typing import Any

from strategies.methods.base import METHODS, Method
from strategies.methods.declarations import Needs
from strategies.methods.fedavg import FedAvg


class FedPer(FedAvg):
    """Arivazhagan et al. 2019: the clients' heads are their own."""

    needs = Needs(memory="personal-head")


SKETCHES: dict[str, type[Method[Any]]] = {"fedper-sketch": FedPer}


def register() -> None:
    """Let runs of this process have them."""
    for name, method in SKETCHES.items():
        METHODS.register(name)(method)
