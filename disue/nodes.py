"""The node config: who a client is and where its data are, as the one who starts the node says it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from disue.config import Privacy
from disue.errors import ConfigError
from disue.naming import LONGEST_NAME, client_name, normal_name
from disue.registry import suggestion

Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME),
    BeforeValidator(lambda value: normal_name(value) if isinstance(value, str) else value),
]
Text = Annotated[str, Field(min_length=1)]
LIMITS: dict[str, Privacy] = {
    "max_epsilon": "dp",
    "max_delta": "dp",
    "min_dp_noise": "dp",
    "max_sketch_size": "secure",
}
"""What a node may limit -> in which runs there is any."""


class NodeConfig(BaseModel):
    """What ``flower-supernode --node-config`` says; the simulation gives ``partition-id`` and ``num-partitions``."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )

    name: Name | None = None
    data_path: Text | None = None
    state_path: Text | None = None
    partition_id: Annotated[int, Field(ge=0)] | None = None
    num_partitions: Annotated[int, Field(ge=1)] | None = None
    model: Text | None = None
    privacy: Privacy | None = None
    max_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    max_delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    min_dp_noise: Annotated[float, Field(gt=0.0)] | None = None
    max_sketch_size: Annotated[int, Field(ge=1)] | None = None

    @classmethod
    def from_flower(cls, node_config: Mapping[str, Any]) -> "NodeConfig":
        """Validate Flower's ``context.node_config``.

        Raises
        ------
        ConfigError
            One line with the key, the value and what is allowed.
        """
        name = node_config.get("name")
        where = f"node config of '{name}'" if isinstance(name, str) and name and name.isprintable() else "node config"
        try:
            return cls._read(node_config)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def _read(cls, node_config: Mapping[str, Any]) -> "NodeConfig":
        known = [name.replace("_", "-") for name in cls.model_fields]
        for key in node_config:
            if key not in known:
                raise ConfigError(f"no such key '{key}'{suggestion(key, known)}; the keys are {', '.join(known)}")
        try:
            config = cls.model_validate(dict(node_config))
        except ValidationError as error:
            first = error.errors()[0]
            expected = first["msg"][0].lower() + first["msg"][1:]
            raise ConfigError(f"{first['loc'][0]}: got {first['input']!r}; {expected}") from None
        config._require_one_source_of_data()
        for name, mode in config._limits().items():
            if (other := config.wanted_privacy) != mode:
                key, value = name.replace("_", "-"), getattr(config, name)
                raise ConfigError(f"{key}: got {value:g}, which needs privacy '{mode}', beside what needs '{other}'")
        return config

    @property
    def wanted_privacy(self) -> Privacy | None:
        """The only ``privacy`` of a run in which the client takes part; None: any."""
        return self.privacy or next(iter(self._limits().values()), None)

    def _limits(self) -> dict[str, Privacy]:
        return {name: mode for name, mode in LIMITS.items() if getattr(self, name) is not None}

    @property
    def client(self) -> str:
        """The client's stable name."""
        return self.name or client_name({"partition-id": self.partition_id})

    def _require_one_source_of_data(self) -> None:
        if self.name is not None and not self.name.isprintable():
            raise ConfigError(f"name: got {self.name!r}; use printable text")
        if self.data_path is not None:
            for key, value in (("partition-id", self.partition_id), ("num-partitions", self.num_partitions)):
                if value is not None:
                    raise ConfigError(f"data-path and {key} exclude each other, use one of them")
            if self.name is None:
                raise ConfigError('data-path needs a name beside it, e.g. name="hospital-a"')
        elif self.partition_id is None or self.num_partitions is None:
            raise ConfigError(
                "neither data-path nor partition-id and num-partitions; "
                'use e.g. --node-config \'name="hospital-a" data-path="/data"\''
            )
        elif self.partition_id >= self.num_partitions:
            raise ConfigError(
                f"partition-id: got {self.partition_id}; num-partitions is {self.num_partitions}, "
                f"use 0 to {self.num_partitions - 1}"
            )
