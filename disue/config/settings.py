"""What a section of the run config is: some keys with their types, defaults, bounds and help."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo

from disue.errors import ConfigError

T = TypeVar("T")
CHANGEABLE = "changeable"
Changeable = Annotated[T, CHANGEABLE]
"""A key that may have another value when a run goes on: the rounds that are over would have been the same."""


def to_kebab(name: str) -> str:
    """Return a field's key."""
    return name.replace("_", "-")


class Settings(BaseModel):
    """Some keys of a run, validated. They are kebab-case outside (``local-epochs``), snake_case here.

    Whoever reads a key declares it, in a subclass beside its code: its section. The first line of the subclass's
    docstring is the heading in CONFIG.md. A config inherits from all its sections, so it is flat.

    Attributes
    ----------
    shared : bool
        Whether all methods of a comparison have the keys of this section alike.

    Examples
    --------
    >>> from pydantic import Field
    >>> class Momentum(Settings):
    ...     '''Momentum at the server.'''
    ...
    ...     server_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="share of the last step in the next")
    >>> Momentum.from_flower({"server-momentum": 0.5, "seed": 3}).server_momentum
    0.5
    """

    model_config = ConfigDict(
        alias_generator=to_kebab, populate_by_name=True, extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )
    shared: ClassVar[bool] = False

    @field_validator("*")
    @classmethod
    def _fit_for_files(cls, value: Any) -> Any:
        if wrong := unfit_for_files(value):
            raise ValueError(wrong)
        return value

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> Self:
        """Validate these keys of a run config; other keys are for others.

        Raises
        ------
        ConfigError
            On the first bad value: one line with the key, the value and what is allowed.
        """
        keys = cls.declared_keys()
        try:
            return cls.model_validate({key: value for key, value in run_config.items() if key in keys})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{first['loc'][0]}: got {first['input']!r}; {_expectation(first)}") from None

    @classmethod
    def of(cls, config: "Settings") -> Self:
        """Return these keys of a config, with their types; those that it does not have are at their defaults."""
        return config if isinstance(config, cls) else cls.from_flower(config.to_flower())

    @classmethod
    def sections(cls) -> "list[type[Settings]]":
        """Return the classes that declare the keys."""
        return [kind for kind in cls.__mro__ if issubclass(kind, Settings) and kind.own_keys()]

    @classmethod
    def own_keys(cls) -> dict[str, FieldInfo]:
        """Return the keys that this very class declares."""
        inherited = {name for base in cls.__bases__ if issubclass(base, Settings) for name in base.model_fields}
        return {to_kebab(name): field for name, field in cls.model_fields.items() if name not in inherited}

    @classmethod
    def declared_keys(cls) -> list[str]:
        """Return all keys, in the order of the sections."""
        return [key for section in cls.sections() for key in section.own_keys()]

    @classmethod
    def changeable_keys(cls) -> frozenset[str]:
        """Return the keys that are `Changeable`."""
        fields = [own for section in cls.sections() for own in section.own_keys().items()]
        return frozenset(key for key, field in fields if CHANGEABLE in field.metadata)

    def to_flower(self) -> dict[str, bool | float | int | str]:
        """Return the keys and their values as Flower keeps them: kebab-case keys, scalar values."""
        values = self.model_dump(by_alias=True)
        return {key: values[key] for key in self.declared_keys()}


def unfit_for_files(value: Any) -> str:
    """Return what to use in place of a value that ``config.toml`` cannot hold; empty: it can.

    No other limit is checked where a run is read again, so what a config may be is what can be read.
    """
    if isinstance(value, str):
        bad = "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)
        return "use text that UTF-8 has, without NUL" if bad else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "use a finite number"
    return "" if not isinstance(value, int) or -(2**63) <= value < 2**63 else "use a whole number of at most 64 bits"


def _off_or_at_least_one(value: float) -> float:
    if 0.0 < value < 1.0:
        raise ValueError("use 0 (off) or a number of at least 1")
    return value


Multiple = Annotated[float, AfterValidator(_off_or_at_least_one)]
"""So many times what is usual, at least 1; 0: off."""


def words(text: str) -> list[str]:
    """Return what stands between commas."""
    return [word.strip() for word in text.split(",")]


def _expectation(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]
