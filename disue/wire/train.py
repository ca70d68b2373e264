"""Local training: where to start, and what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from disue.errors import WireError, quoted_value
from disue.fields import LARGEST_LOSS, LARGEST_PARAMETER, MOST_EXAMPLES, MOST_STEPS, Arrays, Real, Whole, fields_of
from disue.models import State, flatten, negative_variance
from disue.objective import PLAIN, LocalObjective
from disue.signature import Signature, SignatureParts
from disue.tasks import ImageClassification
from disue.wire.arrays import read_optional_state, read_state, to_record
from disue.wire.describe import Digest
from disue.wire.reading import make_config, read_config, read_fields, read_objective, read_task, setting
from disue.wire.signature import read_signature, signature_record


@dataclass(frozen=True)
class TrainRequest:
    """Phase L: start here and train.

    Attributes
    ----------
    start : State or None
        Where to start; None: from the chosen candidate.
    server_round : int
    candidates : tuple of State
        Models that the client chooses from, by the loss on its training data.
    universal : State or None
        The universal expert, where the signature needs it and it is not the start itself.
    signature : bool
        Whether the reply should carry a signature.
    covariance : bool
        Whether it should tell how features vary around their means (`disue.signature.told_beside_updates`).
    digest : bool
        Whether it should carry a digest of the training data.
    memory : str
        The kind of memory that the client is to have; empty: none.
    run : str
        What the run is called, for clients that have a memory or tell a digest: 16 hexadecimal digits.
    shared : State
        What the server shares with all clients that have a memory.
    second : State or None
        Where a second model starts, which is trained beside and sent back, too; None: there is none.
    objective : LocalObjective
    task : ImageClassification or None
        None: the client knows it from the run config.
    """

    start: State | None
    server_round: int
    candidates: tuple[State, ...] = ()
    universal: State | None = None
    signature: bool = False
    covariance: bool = False
    digest: bool = False
    memory: str = ""
    run: str = ""
    shared: State = field(default_factory=dict)
    second: State | None = None
    objective: LocalObjective = PLAIN
    task: ImageClassification | None = None

    def to_message(self, node_id: int, record: Callable[[State], ArrayRecord] = to_record) -> Message:
        """Return the request for one node; without a start the record ``arrays`` is the first candidate.

        ``record`` makes records of models; requests with the same models can share them (`Records`).
        """
        first, *others = self.candidates if self.start is None else (self.start, *self.candidates)
        config = make_config(self.server_round, self.objective, self.task, signature=self.signature)
        content = RecordDict({"arrays": record(first), "config": config})
        config["candidates"] = len(self.candidates)
        for name in ("covariance", "digest"):
            if getattr(self, name):
                config[name] = True
        config["start-from-choice"] = self.start is None
        for i, state in enumerate(others):
            content[f"candidate-{i}"] = record(state)
        if self.universal is not None:
            content["universal"] = record(self.universal)
        if self.memory:
            config["memory"] = self.memory
        if self.memory or self.digest:
            config["run"] = self.run
        if self.shared:
            content["shared"] = record(self.shared)
        if self.second is not None:
            content["second"] = record(self.second)
        return Message(content, node_id, MessageType.TRAIN, group_id=str(self.server_round))

    @classmethod
    def from_message(cls, message: Message) -> "TrainRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        from_choice, count = setting(config, "start-from-choice", bool), setting(config, "candidates", int)
        first = read_state(message, "arrays")
        others = tuple(read_state(message, f"candidate-{i}") for i in range(count - from_choice))
        return cls(
            start=None if from_choice else first,
            server_round=setting(config, "server-round", int),
            candidates=(first, *others) if from_choice else others,
            universal=read_optional_state(message, "universal"),
            signature=setting(config, "signature", bool),
            covariance="covariance" in config and setting(config, "covariance", bool),
            digest="digest" in config and setting(config, "digest", bool),
            memory=setting(config, "memory", str) if "memory" in config else "",
            run=setting(config, "run", str) if "run" in config else "",
            shared=read_optional_state(message, "shared") or {},
            second=read_optional_state(message, "second"),
            objective=read_objective(config),
            task=read_task(config),
        )


@dataclass(frozen=True)
class TrainReply:
    """The trained model and what goes with it.

    ``choice`` is the candidate that the client chose; ``train_loss`` is None where it is kept back. ``second`` is the
    second model, where there is one.
    """

    state: Annotated[
        State,
        Arrays(
            "averaged into the models of its cluster and of all, `max-norm`, `clip-norm` and `aggregator` permitting",
            record="arrays",
            key="*",
            high=LARGEST_PARAMETER,
            shape="names and shapes of the model that was sent",
        ),
    ]
    num_examples: Annotated[
        int,
        Whole(
            "weight of the model in means, and of `train-loss`; more than `max-examples` are refused, and it counts up "
            "to `max-weight` times the median of the others', and of the others' in its cluster",
            low=1,
            high=MOST_EXAMPLES,
        ),
    ]
    train_loss: Annotated[
        float | None,
        Real("reported as a mean; counts up to `max-weight` times the median of the others'", high=LARGEST_LOSS),
    ]
    steps: Annotated[
        int,
        Whole(
            "added up in `client_steps`; with `method=scaffold` its update is divided by them, and what comes of it "
            "counts up to `max-weight` times the median length of the others'",
            high=MOST_STEPS,
        ),
    ]
    signature: Signature | None = None
    choice: Annotated[
        int | None, Whole("the client's cluster; at least the number of candidates is refused", high=10**6)
    ] = None
    second: Annotated[
        State | None,
        Arrays(
            "averaged into the model of its cluster, as `arrays` are into that of all; bounds of an update are of both "
            "together",
            record="second",
            key="*",
            high=LARGEST_PARAMETER,
            shape="names and shapes of the model that was sent",
        ),
    ] = None
    digest: Digest = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        metrics = MetricRecord({"num-examples": self.num_examples, "steps": self.steps})
        if self.train_loss is not None:
            metrics["train-loss"] = self.train_loss
        if self.choice is not None:
            metrics["choice"] = self.choice
        content = RecordDict({"arrays": to_record(self.state), "metrics": metrics})
        if self.second is not None:
            content["second"] = to_record(self.second)
        if self.digest is not None:
            content["config"] = ConfigRecord({"digest": self.digest})
        if self.signature is not None:
            content["signature"] = signature_record(self.signature)
        return Message(content, reply_to=reply_to)

    @classmethod
    def from_message(
        cls,
        message: Message,
        like: State,
        asked: SignatureParts,
        num_candidates: int = 0,
        max_examples: int | None = None,
        second: bool = False,
    ) -> "TrainReply":
        """Read and check the reply.

        Parameters
        ----------
        message : Message
        like : State
            A model of the client's architecture.
        asked : SignatureParts
            Other parts of the signature are left out.
        num_candidates : int (default: 0)
            That the client chose from.
        max_examples : int, optional
        second : bool (default: False)
            Whether a second model was asked for.

        Raises
        ------
        WireError
            If names, shapes or types differ from ``like``, a value is not allowed, ``num-examples`` is above
            ``max_examples``, the signature or the second model is missing, the signature counts more examples, or the
            choice is not one of the candidates.
        """
        state = read_state(message, "arrays")
        _check_state(state, like)
        told = {"train_loss": None, "choice": None} | read_fields(cls, message)
        if max_examples is not None and told["num_examples"] > max_examples:
            raise WireError(f"num-examples is {told['num_examples']}; max-examples allows {max_examples}")
        if not num_candidates:
            told["choice"] = None
        elif told["choice"] is None or told["choice"] >= num_candidates:
            raise WireError(f"choice is {quoted_value(told['choice'])}; there were {num_candidates} candidates")
        signature = None
        if asked.num_strata:
            signature = read_signature(message, asked, like)
            if float(signature.label_counts.sum()) > told["num_examples"]:
                raise WireError(f"the signature counts more than the {told['num_examples']} examples")
        other = read_state(message, "second") if second else None
        if other is not None:
            _check_state(other, like)
        return cls(state=state, signature=signature, second=other, **told)


def _check_state(state: State, like: State) -> None:
    if state.keys() != like.keys():
        raise WireError(f"the model's parameters differ: {sorted(state.keys() ^ like.keys())}")
    for name, tensor in state.items():
        if tensor.shape != like[name].shape or tensor.dtype != like[name].dtype:
            raise WireError(
                f"parameter {name} is {tensor.dtype} {tuple(tensor.shape)}; "
                f"expected {like[name].dtype} {tuple(like[name].shape)}"
            )
    field, _ = fields_of(TrainReply)["state"]
    assert isinstance(field, Arrays)
    if not field.has_room_for(flatten(list(state.values()))):  # a look at all takes a fraction of one at each
        for name, tensor in state.items():
            field.check(tensor, f"parameter {name}")
    if name := negative_variance(state):
        raise WireError(f"{name} has values below 0; it is a variance")
