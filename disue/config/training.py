"""The clients' networks, their local training, and where it is computed."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from disue.config.settings import Changeable, Settings, words
from disue.optimizers import OptimizerName


class ModelSettings(Settings):
    """Networks."""

    shared: ClassVar[bool] = True

    model: str = Field("cnn", description="network architecture")
    client_models: str = Field(
        "",
        description="architectures, separated by commas, each for an equal part of the clients in the order of "
        "partition-id; empty: all have `model`",
    )

    @field_validator("client_models")
    @classmethod
    def _names_between_commas(cls, value: str) -> str:
        if value and not all(words(value)):
            raise ValueError("use names of models, separated by commas")
        return value

    @property
    def models_of_clients(self) -> list[str]:
        """The architectures that the clients have where their node configs name none."""
        return words(self.client_models) if self.client_models else [self.model]

    def client_model(self, partition: int, partitions: int) -> str:
        """Return the architecture of the client with this partition of so many, where its node config names none.

        They are dealt out in blocks: planted groups go round, so that every group has each.
        """
        return self.models_of_clients[partition * len(self.models_of_clients) // partitions]


class TrainingSettings(Settings):
    """Local training."""

    shared: ClassVar[bool] = True

    local_epochs: int = Field(2, ge=1, le=10000, description="epochs of local training per round")
    batch_size: int = Field(32, ge=1, le=10**6, description="mini-batch of local training")
    optimizer: OptimizerName = Field(
        "sgd", description="optimiser of local training; what it remembers begins anew in each round"
    )
    learning_rate: float = Field(0.03, ge=1e-9, le=1e30, description="learning rate of local training")
    learning_rate_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="in each round the learning rate is so many times that of the round before"
    )
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of `sgd`")
    weight_decay: float = Field(0.0, ge=0.0, le=1e3, description="weight decay of local training")
    clip_gradients: float = Field(
        0.0, ge=0.0, le=1e30, description="the gradients of a step are together no longer than that; 0: off"
    )
    mixed_precision: bool = Field(
        False, description="clients train in bfloat16 where that is safe (autocast); quicker on a GPU with large models"
    )

    def learning_rate_in(self, server_round: int) -> float:
        """Return the learning rate of a round, of which the first is 1."""
        return self.learning_rate * self.learning_rate_decay ** (server_round - 1)

    @property
    def plain_sgd(self) -> bool:
        """Whether a step is that of SGD, with or without momentum, and nothing else."""
        return self.optimizer == "sgd" and not self.clip_gradients


class DeviceSettings(Settings):
    """Devices and nodes."""

    shared: ClassVar[bool] = True

    device: Changeable[Literal["auto", "cpu", "cuda"]] = Field("auto", description="where clients and server compute")
    clients_per_node: int = Field(
        1,
        ge=1,
        le=10**4,
        description="in a simulation: clients that each node answers for, each with its own partition",
    )
    clients_at_once: int = Field(
        0,
        ge=0,
        le=10**6,
        description="clients of a node that train together, as one network; 0: 100 on a GPU, and on a CPU each alone",
    )
