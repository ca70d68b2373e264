"""Sets of methods that belong side by side, for `disue compare --preset`."""

from disue.errors import ConfigError
from disue.registry import suggestion

PRESETS: dict[str, tuple[str, ...]] = {
    "ablation": (
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
        "disue:prototype-weight=0",
        "disue:prior-correction=false",
        "disue:share-label-counts=false",
        "disue:teacher=mean:prototype-weight=0:prior-correction=false",
        "disue:student-share=1.0",
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
    ),
}
"""Name -> labels as ``--methods`` takes them."""


def preset(name: str) -> list[str]:
    """Return the labels of a preset.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset: got '{name}'{suggestion(name, sorted(PRESETS))}; there is {', '.join(PRESETS)}")
    return list(PRESETS[name])
