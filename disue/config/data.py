"""The task's data: a dataset and how it is divided, or the clients' own."""

import re
from typing import ClassVar

from pydantic import Field, field_validator

from disue.config.settings import Changeable, Settings, words
from disue.naming import normal_name
from disue.tasks import ImageShape
from disue.tasks.images import LARGEST_SIDE, SMALLEST_SIDE


class DataSettings(Settings):
    """Data."""

    shared: ClassVar[bool] = True

    dataset: str = Field(
        "digits",
        description="task data: the name of a dataset; `path:DIR` or `path:FILE`, images of your own (a folder of "
        "images per class, or an .npz file) that the scenario divides; or `own`, what each client has",
    )
    input_shape: str = Field(
        "1x28x28",
        description="with images of your own: channels x height x width that they are converted to",
    )
    classes: str = Field(
        "",
        description="with dataset=own: all classes, separated by commas, in the order of the model's outputs; empty: "
        "those that the clients have at the start, sorted by name",
    )
    test_fraction: float = Field(
        0.2, ge=1e-6, lt=1.0, description="with images of your own: share of them that is held out to test on"
    )
    data_dir: Changeable[str] = Field(
        "", description="where dataset files are looked for first; empty: the usual places"
    )
    own_data: Changeable[str] = Field(
        "",
        description="with dataset=own, in a simulation: a folder that has, for each client and by its name, a folder "
        "of images per class or an .npz file; empty: clients are on machines of their own, where data-path says",
    )
    scenario: str = Field("label-groups", description="how clients differ")
    num_groups: int = Field(3, ge=1, le=1000, description="planted groups, in scenarios that have them")
    alpha: float = Field(0.1, ge=1e-6, le=1e6, description="Dirichlet concentration; small is skewed")
    train_examples: int = Field(
        200, ge=0, le=10**9, description="most training examples per client, on average; 0: all"
    )
    reuse_examples: bool = Field(
        False,
        description="in scenarios where planted groups see the same data differently (rotation, label-swap): if there "
        "are too few examples for all clients, each group divides all of them",
    )
    test_examples: int = Field(100, ge=0, le=10**9, description="most test examples per client, on average; 0: all")
    global_test_size: int = Field(
        2000, ge=1, le=10**9, description="most examples in the balanced global test set (at least one per class)"
    )

    @field_validator("input_shape")
    @classmethod
    def _shape_of_an_image(cls, value: str) -> str:
        sides = _sizes(value)[1:] if re.fullmatch(r"[13]x[1-9][0-9]{0,3}x[1-9][0-9]{0,3}", value) else [0]
        if min(sides) < SMALLEST_SIDE or max(sides) > LARGEST_SIDE:
            raise ValueError(
                f"use CHANNELSxHEIGHTxWIDTH with 1 or 3 channels and sides from {SMALLEST_SIDE} to {LARGEST_SIDE}, "
                "e.g. 3x32x32"
            )
        return value

    @field_validator("classes")
    @classmethod
    def _several_classes(cls, value: str) -> str:
        value = normal_name(value)
        names = words(value)
        if value and (len(names) < 2 or not all(names) or len(set(names)) < len(names)):
            raise ValueError("use the names of at least 2 classes, separated by commas, each once")
        return value

    @property
    def shape(self) -> ImageShape:
        """Channels, height and width of ``input-shape``."""
        channels, height, width = _sizes(self.input_shape)
        return channels, height, width

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in ``classes``."""
        return tuple(words(self.classes)) if self.classes else ()

    @property
    def scenario_name(self) -> str:
        """How clients differ: the scenario, or that they have data of their own."""
        return "own-data" if self.dataset == "own" else self.scenario


class HoldoutSettings(Settings):
    """Data that no client has."""

    proxy_size: int = Field(
        0, ge=0, le=10**9, description="unlabelled proxy examples; 0: a sixth of the data, at most 2000"
    )


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split("x")]
