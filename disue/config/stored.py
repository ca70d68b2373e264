"""The run config of a run that is over."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field

from disue.config.client import ClientConfig


class StoredConfig(ClientConfig):
    """The settings of a stored run: what clients read is checked, and all else is as it stands in the file.

    So a run can be read whose method is not installed. Every key is an attribute, ``config.distill_steps``; the class
    that declares a key gives it with its type, ``DistillerSettings.of(config).distill_steps``.
    """

    model_config = ConfigDict(extra="allow")

    method: str = Field("", description="the method's name")

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> Self:
        """Return the settings; raise as `Settings.from_flower` does."""
        known = super().from_flower(run_config)
        others = {key.replace("-", "_"): value for key, value in run_config.items() if key not in cls.declared_keys()}
        return known.model_copy(update=others)

    def to_flower(self) -> dict[str, bool | float | int | str]:
        """Return all keys of the file and their values."""
        others = {name.replace("_", "-"): value for name, value in (self.model_extra or {}).items()}
        return super().to_flower() | others
