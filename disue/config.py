"""The run config: every key with its type, its default, its allowed values and its meaning."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from disue.errors import ConfigError
from disue.naming import normal_name
from disue.registry import suggestion
from disue.tasks import ImageShape
from disue.tasks.images import LARGEST_SIDE, SMALLEST_SIDE


def _to_kebab(name: str) -> str:
    return name.replace("_", "-")


ROBUST: dict[str, Any] = {
    "aggregator": "multi-krum",
    "malicious_share": 0.4,
    "clip_norm": 1.5,
    "prototype_limit": 3.0,
    "probation_rounds": 3,
}
"""What ``robust`` sets."""

LocalLoss = Literal["cross-entropy", "balanced"]
Privacy = Literal["plain", "dp", "secure"]


class RunConfig(BaseModel):
    """One run, resolved. Keys are kebab-case outside (``num-server-rounds``), snake_case here."""

    model_config = ConfigDict(
        alias_generator=_to_kebab, populate_by_name=True, extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )

    num_server_rounds: int = Field(10, ge=1, le=10**6, description="federated rounds")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="the one seed from which every random choice is derived")
    method: str = Field("disue", description="strategy")

    dataset: str = Field("digits", description="task data")
    input_shape: str = Field(
        "1x28x28",
        description="with dataset=own: channels x height x width that all clients convert their images to",
    )
    classes: str = Field(
        "",
        description="with dataset=own: all classes, separated by commas, in the order of the model's outputs; empty: "
        "those that the clients have at the start, sorted by name",
    )
    test_fraction: float = Field(
        0.2, ge=1e-6, lt=1.0, description="with dataset=own: share of its data that a client holds out to test on"
    )
    data_dir: str = Field("", description="where dataset files are looked for first; empty: the usual places")
    scenario: str = Field("label-groups", description="how clients differ")
    num_groups: int = Field(3, ge=1, le=1000, description="planted groups, in scenarios that have them")
    alpha: float = Field(0.1, ge=1e-6, le=1e6, description="Dirichlet concentration; small is skewed")
    train_examples: int = Field(
        200, ge=0, le=10**9, description="most training examples per client, on average; 0: all"
    )
    test_examples: int = Field(100, ge=0, le=10**9, description="most test examples per client, on average; 0: all")
    global_test_size: int = Field(
        2000, ge=1, le=10**9, description="most examples in the balanced global test set (at least one per class)"
    )
    proxy: str = Field(
        "holdout",
        description="the server's proxy set: `holdout` (of the task's data), `dataset:NAME`, `path:DIR` (images), or "
        "`generator` (no data)",
    )
    proxy_size: int = Field(
        0, ge=0, le=10**9, description="unlabelled proxy examples; 0: a sixth of the data, at most 2000"
    )

    model: str = Field("cnn", description="network architecture")
    client_models: str = Field(
        "",
        description="architectures, separated by commas, each for an equal part of the clients in the order of "
        "partition-id; empty: all have `model`",
    )
    local_epochs: int = Field(2, ge=1, le=10000, description="epochs of local training per round")
    batch_size: int = Field(32, ge=1, le=10**6, description="mini-batch of local training")
    learning_rate: float = Field(0.03, ge=1e-9, le=1e30, description="SGD learning rate of local training")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="SGD momentum")
    weight_decay: float = Field(0.0, ge=0.0, le=1e3, description="SGD weight decay")
    prox_mu: float = Field(
        -1.0, ge=-1.0, le=1e6, description="weight of the proximal term; -1: 0.01 for fedprox, else 0"
    )
    mixed_precision: bool = Field(
        False, description="clients train in bfloat16 where that is safe (autocast); quicker on a GPU with large models"
    )
    local_loss: LocalLoss = Field(
        "cross-entropy", description="balanced: logits are shifted by the client's log label shares (FedLC)"
    )
    initialisation: Literal["universal", "expert", "blend", "learned"] = Field(
        "learned",
        description="what a client starts a round from; learned: a blend whose share is learnt for each cluster",
    )
    blend: float = Field(
        0.5, ge=0.0, le=1.0, description="share of the own expert when initialisation=blend, and at first when learned"
    )
    expert_memory: float = Field(
        0.5, ge=0.0, lt=1.0, description="share of the past in disue's experts; 0: the last round's updates alone"
    )
    expert_prior: Literal["cluster", "client"] = Field(
        "client",
        description="label prior with which a client of disue uses its expert: as it was trained, or the client's own "
        "in its place; with local-loss=balanced always the client's own",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where clients and server compute")

    min_clients: int = Field(
        2, ge=1, le=10**6, description="fewest clients that must have joined, and answered, before the first round"
    )
    join_timeout: float = Field(
        20.0, ge=1e-6, le=1e7, description="seconds to wait at the start for min-clients to join and to answer"
    )
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
    fraction_train: float = Field(1.0, ge=1e-6, le=1.0, description="share of clients sampled for training")
    fraction_evaluate: float = Field(
        1.0, ge=1e-6, le=1.0, description="share of clients sampled for evaluation; after the last round all are"
    )
    evaluate_every: int = Field(
        1, ge=1, le=10**6, description="evaluate on the clients every n rounds, and after the last"
    )
    round_timeout: float = Field(600.0, ge=1e-6, le=1e7, description="seconds that a phase waits for its replies")
    min_success_fraction: float = Field(
        0.5,
        ge=1e-6,
        le=1.0,
        description="share of sampled clients that must send a usable update; a round with fewer is repeated once",
    )

    clusterer: str = Field("agglomerative", description="clustering algorithm")
    num_clusters: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of clusters; 0: chosen from the signatures (ifca, fesem, fedgroup: as many as num-groups)",
    )
    min_cluster_size: int = Field(
        2,
        ge=1,
        le=10**6,
        description="fewest clients in a cluster of disue by signature; a smaller one joins the nearest",
    )
    signature: str = Field("initial-prototypes", description="what clients are compared by")
    signature_memory: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="share of the past in a client's running signature, where that is made from updates",
    )

    aggregator: str = Field(
        "mean", description="how the clients' models are combined, in each cluster and over all clients"
    )
    malicious_share: float = Field(
        0.2,
        ge=0.0,
        lt=0.5,
        description="share of the models, rounded up, that trimmed-mean, krum and multi-krum withstand",
    )
    clip_norm: float = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="no update is longer than so many times the median of the round; 0: as long as it is",
    )

    max_norm: float = Field(
        10.0,
        ge=0.0,
        le=1e9,
        description="an update is rejected that is longer than so many times the median of the round, and than so many "
        "times the model that it started from; 0: none is",
    )
    max_examples: int = Field(
        10**7, ge=1, le=10**12, description="an update that claims to stand for more training examples is rejected"
    )
    max_weight: float = Field(
        10.0,
        ge=0.0,
        le=10**9,
        description="cap on a client's example counts, and on losses that are reported as means, as a multiple of the "
        "median of the other clients'; 0: no cap",
    )
    max_fit: float = Field(
        2.0,
        ge=0.0,
        le=10**9,
        description="cap on a client's losses from which the blend of its cluster is learnt, as a multiple of the "
        "median of the cluster's other clients, and on how far apart its losses on student and average lie; 0: no cap "
        "but twice the loss of guessing",
    )
    reply_memory: int = Field(
        1024,
        ge=0,
        le=10**9,
        description="MiB of clients' models that the server holds in memory in a round; it keeps the others in a file "
        "in the run directory",
    )
    prototype_limit: float = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="a client's prototype of a class does not count in disue if it lies farther from what others call "
        "that class than so many times the median distance; 0: all count",
    )
    probation_rounds: int = Field(
        0,
        ge=0,
        le=10**6,
        description="rounds in which a cluster of disue with less than half the usual number of clients must have "
        "taken part before it teaches",
    )
    robust: bool = Field(
        False, description="protect the run against malicious clients, by the settings named in docs/ROBUSTNESS.md"
    )

    cfl_eps1: float = Field(
        0.4, ge=1e-9, le=1e9, description="cfl cuts a cluster whose mean update is shorter than this"
    )
    cfl_eps2: float = Field(1.6, ge=1e-9, le=1e9, description="... and one of whose updates is longer than this")
    warm_up_rounds: int = Field(3, ge=0, le=10**6, description="rounds of FedAvg before flhc clusters")

    teacher: str = Field(
        "auto",
        description="how the experts vote on a proxy sample; auto: class-weighted on generated samples, else prototype",
    )
    prior_correction: bool = Field(
        True,
        description="take each cluster's label prior out of its expert's logits; with local-loss=balanced none is in",
    )
    share_label_counts: bool = Field(
        True,
        description="tell the server how many examples of each class a client has; else only which classes it has, and "
        "the clusters' priors are estimated on the proxy set",
    )
    prototypes: Literal["client", "cluster"] = Field(
        "client",
        description="class prototypes that samples are compared with: of each client, or the mean of a cluster's; "
        "there is no more than the latter with privacy=secure",
    )
    prototype_weight: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="weight of the clients' class prototypes in the vote; the experts have 1 together",
    )
    student_share: float = Field(
        0.5, ge=1e-6, le=1.0, description="share of the student in disue's universal expert; the rest is the average"
    )
    temperature: float = Field(1.0, ge=0.01, le=1e4, description="softmax temperature of distillation")
    distill_steps: int = Field(
        100, ge=0, le=10**6, description="most optimiser steps of distillation per round; 0: none"
    )
    distill_batch_size: int = Field(64, ge=1, le=10**6, description="mini-batch of distillation")
    distill_learning_rate: float = Field(0.001, ge=1e-9, le=1e3, description="Adam learning rate of distillation")

    generator_steps: int = Field(100, ge=1, le=10**6, description="steps of the generator per round (proxy=generator)")
    generator_batch_size: int = Field(64, ge=2, le=10**6, description="mini-batch of the generator")
    generator_learning_rate: float = Field(0.001, ge=1e-9, le=1e3, description="Adam learning rate of the generator")
    generator_adversarial: float = Field(
        0.1, ge=0.0, le=1e6, description="weight of looking for where student and teacher differ; fidelity has weight 1"
    )
    generator_diversity: float = Field(
        1.0, ge=0.0, le=1e6, description="weight of different images for different noise"
    )
    generator_prototypes: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="weight of images whose features have the clients' prototypes as their means",
    )

    privacy: Privacy = Field(
        "plain",
        description="what of a client's data the server sees; dp: clipped and noisy releases (extra `dp`); secure: "
        "sketches to cluster by, and sums of the updates of clusters, of 3 clients at least; what that protects is in "
        "[PRIVACY.md](PRIVACY.md)",
    )
    dp_clip: float = Field(
        1.0, ge=1e-6, le=1e6, description="with privacy=dp: no update of a client is longer than this"
    )
    dp_noise: float = Field(
        1.0,
        ge=1e-9,
        le=1e6,
        description="with privacy=dp: deviation of the noise in each coordinate, in lengths of the longest vector",
    )
    dp_delta: float = Field(
        1e-5, ge=1e-100, lt=1.0, description="with privacy=dp: the delta for which epsilon is reported"
    )
    sketch_size: int = Field(
        8, ge=1, le=10**5, description="with privacy=secure: numbers in the sketch of a client's signature"
    )
    sketch_noise: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="with privacy=secure: length of the noise in a sketch, on the mean, in lengths of the signature",
    )
    secure_threshold: float = Field(
        0.6,
        ge=1e-6,
        le=1.0,
        description="with privacy=secure: share of a cluster's sampled clients, 3 at least, who must stay until its "
        "sum is unmasked, or the cluster goes without the round",
    )

    output_dir: str = Field("", description="run directory, missing or empty; empty: runs/DATE-TIME-METHOD")
    report: bool = Field(True, description="make report.html at the end (5 MB); `disue report` makes it later")
    tensorboard: bool = Field(
        False, description="write event files into `tensorboard` of the run directory (extra `tensorboard`)"
    )
    resume_from: str = Field(
        "",
        description="directory of a run that was interrupted, to go on there; the keys that say what is computed must "
        "be as they were (`disue simulate --resume DIR` takes them from there)",
    )

    @field_validator("*")
    @classmethod
    def _fit_for_files(cls, value: Any) -> Any:
        if wrong := unfit_for_files(value):
            raise ValueError(wrong)
        return value

    @field_validator("prox_mu")
    @classmethod
    def _weight_or_left_open(cls, value: float) -> float:
        if value < 0.0 and value != -1.0:
            raise ValueError("use 0 or more, or -1 for the method's own")
        return value

    @field_validator("max_norm", "max_weight", "max_fit", "prototype_limit")
    @classmethod
    def _no_less_than_usual(cls, value: float) -> float:
        if 0.0 < value < 1.0:
            raise ValueError("use 0 (off) or a number of at least 1")
        return value

    @field_validator("proxy")
    @classmethod
    def _known_kind_of_proxy(cls, value: str) -> str:
        kind, separator, where = value.partition(":")
        if value not in ("holdout", "generator") and not (kind in ("dataset", "path") and separator and where):
            raise ValueError("use holdout, dataset:NAME, path:DIR or generator")
        return value

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
        names = _words(value)
        if value and (len(names) < 2 or not all(names) or len(set(names)) < len(names)):
            raise ValueError("use the names of at least 2 classes, separated by commas, each once")
        return value

    @field_validator("client_models")
    @classmethod
    def _names_between_commas(cls, value: str) -> str:
        if value and not all(_words(value)):
            raise ValueError("use names of models, separated by commas")
        return value

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Validate Flower's ``context.run_config``.

        Raises
        ------
        ConfigError
            On the first unknown key or bad value: one line with the key, the value and what is allowed.
        """
        known = {str(field.alias) for field in cls.model_fields.values()}
        for key in run_config:
            if key not in known:
                raise ConfigError(
                    f"{key}: no such run config key{suggestion(key, sorted(known))}; all keys are in docs/CONFIG.md"
                )
        try:
            return cls.model_validate(dict(run_config))._protected()
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            raise ConfigError(f"{key}: got {first['input']!r}; {_expectation(first)}") from None

    def _protected(self) -> "RunConfig":
        """Return the config with the robust settings, where ``robust`` is set, in the place of the defaults."""
        if not self.robust:
            return self
        for name, value in ROBUST.items():
            got, default = getattr(self, name), type(self).model_fields[name].default
            if got not in (default, value):
                raise ConfigError(f"{_to_kebab(name)}: got {got!r}; robust=true sets it to {value!r}, leave one out")
        return self.model_copy(update=ROBUST)

    @property
    def models_of_clients(self) -> list[str]:
        """The architectures that the clients have where their node configs name none."""
        return _words(self.client_models) if self.client_models else [self.model]

    @property
    def shape(self) -> ImageShape:
        """Channels, height and width of ``input-shape``."""
        channels, height, width = _sizes(self.input_shape)
        return channels, height, width

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in ``classes``."""
        return tuple(_words(self.classes)) if self.classes else ()

    @property
    def scenario_name(self) -> str:
        """How clients differ: the scenario, or that they have data of their own."""
        return "own-data" if self.dataset == "own" else self.scenario

    def client_model(self, partition: int, partitions: int) -> str:
        """Return the architecture of the client with this partition of so many, where its node config names none.

        They are dealt out in blocks: planted groups go round, so that every group has each.
        """
        return self.models_of_clients[partition * len(self.models_of_clients) // partitions]

    def to_flower(self) -> dict[str, bool | float | int | str]:
        """Return the config as Flower keeps it: kebab-case keys, scalar values."""
        return self.model_dump(by_alias=True)


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


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split("x")]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _expectation(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]
