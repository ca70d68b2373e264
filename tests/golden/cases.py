"""The small runs whose results are kept."""

from dataclasses import dataclass, field

SMALL = {
    "model": "mlp",
    "num-server-rounds": "2",
    "local-epochs": "1",
    "train-examples": "30",
    "test-examples": "10",
    "global-test-size": "60",
    "proxy-size": "60",
    "distill-steps": "5",
    "distill-batch-size": "20",
    "report": "false",
    "seed": "3",
}
"""What all cases have alike."""
METHODS = ("local", "fedavg", "fedprox", "fedlc", "fedavg-ft", "feddf", "ifca", "fesem", "cfl", "flhc", "fedgroup")
METHODS += ("pacfl", "oracle", "disue", "fedavgm", "fedadam", "scaffold", "ditto", "fedrep", "stocfl", "ccvr")


@dataclass(frozen=True)
class Case:
    """One run with the inline engine.

    Attributes
    ----------
    sets : dict of str to str
        Run config keys, beside those of `SMALL`.
    clients : int
    rounds_more : int
        So many are added by a second command that goes on with the run.
    quick : bool
        Whether it is one of the fast tests.
    random_bytes : bool
        Whether messages have bytes that no seed decides: they are then known by their lengths.
    """

    sets: dict[str, str] = field(default_factory=dict)
    clients: int = 6
    rounds_more: int = 0
    quick: bool = False
    random_bytes: bool = False


def _cases() -> dict[str, Case]:
    quick = ("fedavg", "ifca", "cfl", "disue")
    cases = {name: Case({"method": name}, quick=name in quick) for name in METHODS}
    for scenario in ("iid", "dirichlet", "rotation", "label-swap"):
        cases[f"disue-{scenario}"] = Case({"scenario": scenario}, quick=scenario == "rotation")
    for clusterer in ("kmeans", "spectral", "bipartition", "edc", "hdbscan", "single", "ifca", "oracle"):
        cases[f"disue-{clusterer}"] = Case({"clusterer": clusterer})
    for signature in ("prototypes", "update", "last-layer", "subspace", "anchor-gradient"):
        cases[f"disue-by-{signature}"] = Case({"signature": signature})
    for teacher in ("mean", "class-weighted", "confidence"):
        cases[f"disue-{teacher}-teacher"] = Case({"teacher": teacher})
    for aggregator in ("median", "trimmed-mean", "krum", "geometric-median"):
        cases[f"fedavg-{aggregator}"] = Case({"method": "fedavg", "aggregator": aggregator})
    return cases | {
        "disue-robust": Case({"robust": "true"}),
        # few steps: it is trained against a student, and after ten a last bit has become a hundredth
        "disue-generator": Case({"proxy": "generator", "generator-steps": "5"}, quick=True),
        "disue-foreign-proxy": Case({"proxy": "dataset:digits"}),
        "disue-two-architectures": Case({"client-models": "mlp,lenet"}),
        "disue-cnn": Case({"model": "cnn"}),
        "disue-sampled": Case({"fraction-train": "0.5", "fraction-evaluate": "0.5"}, clients=8),
        "disue-packed": Case({"clients-per-node": "3"}),
        "disue-resumed": Case({"num-server-rounds": "1"}, rounds_more=1, quick=True),
        "fedavg-dp": Case({"method": "fedavg", "privacy": "dp"}),
        "disue-dp": Case({"privacy": "dp"}, quick=True),
        "fedavg-secure": Case({"method": "fedavg", "privacy": "secure"}, random_bytes=True),
        "disue-secure": Case({"privacy": "secure"}, quick=True, random_bytes=True),
        "disue-secure-by-update": Case({"privacy": "secure", "signature": "update"}, random_bytes=True),
    }


CASES = _cases()
