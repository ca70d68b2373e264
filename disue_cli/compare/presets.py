"""What belongs side by side, for `disue compare --preset`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disue.data import DATASETS, missing_from
from disue.errors import ConfigError
from disue.registry import suggestion
from strategies.methods import METHODS


@dataclass(frozen=True)
class Preset:
    """What is compared, in which setting, and what is reported. The defaults are those of the command.

    Attributes
    ----------
    methods, datasets, scenarios : tuple of str
        As the options of these names take them.
    otherwise : str
        The dataset that is taken if there are no files of any of ``datasets``; empty: files are downloaded.
    clients : int
    settings : mapping of key to value
        Run config keys of all runs.
    last_rounds : int
        Accuracies are means over so many last rounds.
    with_target : bool
        Rounds and megabytes to a universal accuracy are reported.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...] = ("digits",)
    otherwise: str = ""
    scenarios: tuple[str, ...] = ("label-groups",)
    clients: int = 12
    settings: Mapping[str, Any] = field(default_factory=dict)
    last_rounds: int = 1
    with_target: bool = False

    @property
    def has_setting(self) -> bool:
        """Whether it is more than a set of methods."""
        return self != Preset(self.methods)

    def with_settings(self, given: Mapping[str, Any]) -> "Preset":
        """Return it with these settings in the place of its own, and of those of its scenarios."""
        scenarios = (":".join(_without(given, *scenario.split(":"))) for scenario in self.scenarios)
        return replace(self, settings={**self.settings, **given}, scenarios=tuple(dict.fromkeys(scenarios)))


def _without(keys: Mapping[str, Any], name: str, *assignments: str) -> list[str]:
    return [name, *(own for own in assignments if own.partition("=")[0] not in keys)]


PRESETS: dict[str, Preset] = {
    "ablation": Preset(
        methods=(
            "disue",
            # phases off: no experts (FedAvg), no distillation, nothing shared between clusters
            "fedavg",
            "disue:distill-steps=0",
            "disue:initialisation=expert:distill-steps=0",
            # phase C: told the groups; without labels; by loss
            "disue:clusterer=oracle",
            "disue:signature=subspace",
            "disue:clusterer=ifca",
            # phase U: who votes, and how
            "feddf",
            "disue:teacher=mean",
            "disue:teacher=class-weighted",
            "disue:teacher=confidence",
            "disue:teacher=prototype",
            "disue:prototype-weight=0",
            "disue:share-label-counts=false",
            "disue:teacher=mean:prototype-weight=0:calibration-epochs=0",
            # what tells samples apart; how often an image is seen
            "disue:early-features=0",
            "disue:proxy-samples=0",
            # heads as they were averaged and taught; the average without momentum
            "disue:calibration-epochs=0",
            "disue:head-share=1",
            "disue:universal-momentum=0",
            # the universal expert of the last round alone
            "disue:universal-mean=false",
            # what clients minimise
            "disue:local-loss=balanced",
            # where an expert is used
            "disue:expert-prior=cluster",
            # phase U: on what
            "disue:proxy=generator",
            # what clients start from
            "disue:initialisation=universal",
            "disue:initialisation=blend",
            "disue:initialisation=blend:blend=0.8",
            "disue:initialisation=expert",
            # phase C: the last round's updates alone
            "disue:expert-memory=0",
        )
    ),
    # Clients, sampling, skew and epochs are those of DisUE's paper (arXiv:2506.20285); network and images fit a CPU
    "paper": Preset(
        methods=("disue", "fedavg", "fedlc", "fedavgm", "ccvr", "ditto", "fedrep", "stocfl", "ifca"),
        datasets=("cifar10", "cifar100", "svhn"),
        otherwise="fashion-mnist",
        scenarios=("dirichlet:alpha=0.1", "dirichlet:alpha=0.3"),
        clients=100,
        settings={
            "fraction-train": 0.1,
            "train-examples": 400,
            "model": "lenet",
            "local-epochs": 5,
            "batch-size": 32,
            "learning-rate": 0.01,
            "num-server-rounds": 100,
        },
        last_rounds=10,
        with_target=True,
    ),
    # Ghosh et al. 2020 (IFCA), table 1, m = 1200 and n = 200; the number of rounds is that of the authors' code
    "rotated-mnist": Preset(
        methods=("disue", "local", "fedavg", "fedlc", "fedavgm", "ditto", "fedrep", "stocfl", "ifca", "oracle"),
        datasets=("mnist",),
        otherwise="fashion-mnist",
        scenarios=("rotation",),
        clients=1200,
        settings={
            "num-groups": 4,
            "train-examples": 200,
            "reuse-examples": True,  # each image is in all four rotations
            "model": "mlp-200",
            "local-epochs": 10,
            "batch-size": 10_000,  # more than any client has: an epoch is a step
            "learning-rate": 0.1,
            "momentum": 0.0,
            "num-server-rounds": 300,
        },
        last_rounds=10,
        with_target=True,
    ),
}
TARGETS = {
    "digits": 0.9,
    "mnist": 0.85,
    "fashion-mnist": 0.75,
    "svhn": 0.7,
    "cifar10": 0.5,
    "cifar100": 0.25,
}
"""Dataset -> universal accuracy to which rounds and megabytes are counted, where no other is asked for."""


def chosen(
    name: str | None, axes: Mapping[str, tuple[str, ...]], clients: int | None, settings: Mapping[str, Any]
) -> tuple[Preset, str]:
    """Return what is compared: what was given, and else what a preset has.

    Parameters
    ----------
    name : str, optional
        The preset's.
    axes : mapping
        What was given of ``methods``, ``scenarios`` and ``datasets``.
    clients : int, optional
        The number that was given.
    settings : mapping of key to value

    Returns
    -------
    (Preset, str)
        And what is to be said of datasets that are not there.

    Raises
    ------
    ConfigError
        If there is no such preset, or nothing is left of it.
    DataError
        If ``data-dir`` cannot be read.
    """
    base = Preset(methods=tuple(METHODS)) if name is None else preset(name)
    if name is not None and "methods" in axes and not base.has_setting:
        raise ConfigError("--preset: brings its own methods; use it or --methods")
    wanted, remark = base.with_settings(settings), ""
    datasets = axes.get("datasets")
    if datasets is None:
        datasets, remark = _datasets_there(wanted)
    return replace(
        wanted,
        methods=axes.get("methods", wanted.methods),
        scenarios=axes.get("scenarios", wanted.scenarios),
        datasets=datasets,
        clients=wanted.clients if clients is None else clients,
    ), remark


def targets(wanted: Preset, given: float | None) -> dict[str, float]:
    """Return the accuracy, by dataset, to which rounds and bytes are counted; ``given``: what was asked for.

    Raises
    ------
    ConfigError
        If it is no accuracy, or there is none for a dataset.
    """
    if given is not None:
        if not 0.0 < given <= 1.0:
            raise ConfigError(f"--target-accuracy: got {given:g}; expected a number above 0, at most 1")
        return dict.fromkeys(wanted.datasets, given)
    if not wanted.with_target:
        return {}
    if unknown := [name for name in wanted.datasets if name in DATASETS and name not in TARGETS]:
        raise ConfigError(f"--target-accuracy: there is none by default for dataset '{unknown[0]}'; give one")
    return {name: TARGETS[name] for name in wanted.datasets if name in TARGETS}


def preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset: got '{name}'{suggestion(name, sorted(PRESETS))}; there is {', '.join(PRESETS)}")
    return PRESETS[name]


def _datasets_there(preset: Preset) -> tuple[tuple[str, ...], str]:
    """Return the datasets that a preset can be run with, and what is to be said of the others."""
    if not preset.otherwise:
        return preset.datasets, ""
    data_dir = str(preset.settings.get("data-dir", ""))
    places = {name: missing_from(name, data_dir) for name in preset.datasets}
    missing = [name for name in preset.datasets if places[name]]
    if not missing:
        return preset.datasets, ""
    there = tuple(name for name in preset.datasets if name not in missing)
    looked = ", ".join(dict.fromkeys(str(place) for name in missing for place in places[name]))
    taken = "the others are taken" if there else f"{preset.otherwise} is taken"
    return there or (preset.otherwise,), (
        f"{', '.join(missing)}: no files in {looked}, so {taken}; --datasets {','.join(missing)} downloads them"
    )
