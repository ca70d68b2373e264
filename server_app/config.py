"""The run config: all keys of a run, composed of the sections that their owners declare."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from types import new_class
from typing import Any, ClassVar, Self

from pydantic import Field

from disue.config import Changeable, Settings
from disue.config.settings import to_kebab
from disue.errors import ConfigError
from disue.files import run_settings
from disue.registry import Registry, suggestion
from strategies.aggregation.robust import AGGREGATORS
from strategies.clustering.estimators import CLUSTERERS
from strategies.distillation.teachers import TEACHERS
from strategies.methods import METHODS
from strategies.methods.parts import ASSIGNERS
from strategies.methods.settings import StrategyConfig

OWNERS: tuple[Registry[Any], ...] = (AGGREGATORS, CLUSTERERS, ASSIGNERS, TEACHERS, METHODS)
"""Registries whose parts may have keys of their own."""
ROBUST: dict[str, Any] = {
    "aggregator": "multi-krum",
    "malicious_share": 0.4,
    "clip_norm": 1.5,
    "prototype_limit": 3.0,
    "probation_rounds": 3,
}
"""What ``robust`` sets."""


class RobustSettings(Settings):
    """Malicious clients."""

    robust: bool = Field(
        False, description="protect the run against malicious clients, by the settings named in docs/ROBUSTNESS.md"
    )


class OutputSettings(Settings):
    """The run directory."""

    shared: ClassVar[bool] = True

    output_dir: Changeable[str] = Field("", description="run directory, missing or empty; empty: runs/DATE-TIME-METHOD")
    report: Changeable[bool] = Field(
        True, description="make report.html at the end (5 MB); `disue report` makes it later"
    )
    tensorboard: Changeable[bool] = Field(
        False, description="write event files into `tensorboard` of the run directory (extra `tensorboard`)"
    )
    resume_from: Changeable[str] = Field(
        "",
        description="directory of a run that was interrupted, to go on there; the keys that say what is computed must "
        "be as they were (`disue simulate --resume DIR` takes them from there)",
    )


class RunConfig(StrategyConfig, RobustSettings, OutputSettings, Settings):
    """One run, resolved.

    Here are the keys of every run. An instance has those of all registered parts, too: the parts' own classes declare
    them, and give them with their types (``CFLSettings.of(config).cfl_eps1``).
    """

    def __new__(cls, **values: Any) -> Self:
        """Return an instance of the complete class, as `pathlib.Path` does of the system's."""
        complete: Any = cls.complete() if cls is RunConfig else cls
        instance: Self = super().__new__(complete)
        return instance

    @classmethod
    def complete(cls) -> "type[RunConfig]":
        """Return the class that has the keys of all registered parts, too."""
        return _composed(tuple(dict.fromkeys(own for registry in OWNERS for own in registry.settings)))

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> Self:
        """Validate Flower's ``context.run_config``.

        Raises
        ------
        ConfigError
            On the first unknown key or bad value: one line with the key, the value and what is allowed.
        """
        complete = cls.complete()
        known = complete.declared_keys()
        for key in run_config:
            if key not in known:
                raise ConfigError(
                    f"{key}: no such run config key{suggestion(key, sorted(known))}; all keys are in docs/CONFIG.md"
                )
        config: Any = super(RunConfig, complete).from_flower(run_config)
        protected: Self = config._protected()
        return protected

    def _protected(self) -> Self:
        """Return the config with the robust settings, where ``robust`` is set, in the place of the defaults."""
        if not self.robust:
            return self
        for name, value in ROBUST.items():
            got, default = getattr(self, name), type(self).model_fields[name].default
            if got not in (default, value):
                raise ConfigError(f"{to_kebab(name)}: got {got!r}; robust=true sets it to {value!r}, leave one out")
        return self.model_copy(update=ROBUST)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the same config of: the complete class is made in each process."""
        return RunConfig.from_flower, (self.to_flower(),)


@cache
def _composed(sections: tuple[type[Settings], ...]) -> type[RunConfig]:
    """Return a run config with these sections, too.

    Raises
    ------
    ValueError
        If two of them declare the same key.
    """
    outer = [own for own in sections if not any(own is not other and issubclass(other, own) for other in sections)]
    bases = (RunConfig, *outer)
    complete: type[RunConfig] = new_class("RunConfig", bases, {}, lambda body: body.update(__module__=__name__))
    twice = [key for key, times in Counter(complete.declared_keys()).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]} is declared twice")
    return complete


def stored_settings(text: str) -> dict[str, Any]:
    """Parse the ``config.toml`` of a run; see `disue.files.run_settings`."""
    return run_settings(text, RunConfig.complete())
