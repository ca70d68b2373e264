"""The methods. Each is in a file of its own and registers itself; a file that is not listed here is not known."""

from importlib import import_module

from strategies.methods.base import METHODS as METHODS

for _file in (
    "local",
    "fedavg",
    "fedprox",
    "fedlc",
    "fedavg_ft",
    "fedavgm",
    "fedadam",
    "scaffold",
    "ccvr",
    "ditto",
    "fedrep",
    "feddf",
    "fesem",
    "cfl",
    "oneshot",
    "pacfl",
    "ifca",
    "stocfl",
    "oracle",
    "disue",
):
    import_module(f"strategies.methods.{_file}")
