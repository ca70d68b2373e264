"""Local evaluation: of which models, and how good they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from disue.errors import WireError
from disue.fields import LARGEST_LOSS, MOST_EXAMPLES, MOST_STEPS, Real, Whole
from disue.models import State
from disue.objective import PLAIN, LocalObjective
from disue.tasks import ImageClassification
from disue.wire.arrays import read_optional_state, read_state, to_record
from disue.wire.reading import make_config, read_config, read_fields, read_objective, read_task, setting

OWN_ROW = "reported for this client, and one of all clients' in means that count every client once"
FITS = (
    "part of the sum from which its cluster's blend is learnt; counts up to `max-fit` times the median of the "
    "cluster's others, or half of ln C where that is more, and never for more than 2 ln C, C the number of classes"
)


@dataclass(frozen=True)
class EvaluateRequest:
    """Evaluate the universal expert and the client's own expert.

    Attributes
    ----------
    universal : State
    server_round : int
    expert : State or None
        None: it is the universal expert.
    expert_prior : (classes,) tensor or None
        Log label shares that are in the expert's logits, for which the client puts its own. None: leave them as they
        are.
    personalise : bool
        Whether to fine-tune the expert, too, and evaluate it then.
    compare : bool
        Whether to say, too, how well both models fit the training data.
    memory, run : str
        The kind of memory that the client has, and what the run is called; empty: it has none.
    objective : LocalObjective
    task : ImageClassification or None
        None: the client knows it from the run config.
    """

    universal: State
    server_round: int
    expert: State | None = None
    expert_prior: Tensor | None = None
    personalise: bool = False
    compare: bool = False
    memory: str = ""
    run: str = ""
    objective: LocalObjective = PLAIN
    task: ImageClassification | None = None

    def to_message(self, node_id: int, record: Callable[[State], ArrayRecord] = to_record) -> Message:
        """Return the request for one node; ``record`` as in `TrainRequest.to_message`."""
        content = RecordDict(
            {
                "arrays": record(self.universal),
                "config": make_config(
                    self.server_round, self.objective, self.task, personalise=self.personalise, compare=self.compare
                ),
            }
        )
        if self.memory:
            config = content.config_records["config"]
            config["memory"], config["run"] = self.memory, self.run
        if self.expert is not None:
            content["expert"] = record(self.expert)
        if self.expert_prior is not None:
            content["prior"] = to_record({"expert": self.expert_prior})
        return Message(content, node_id, MessageType.EVALUATE, group_id=str(self.server_round))

    @classmethod
    def from_message(cls, message: Message) -> "EvaluateRequest":
        """Read the request; raise `FederationError` if the server runs other source code."""
        config = read_config(message)
        priors = read_optional_state(message, "prior")
        return cls(
            universal=read_state(message, "arrays"),
            server_round=setting(config, "server-round", int),
            expert=read_optional_state(message, "expert"),
            expert_prior=None if priors is None else _expert_prior(priors),
            personalise=setting(config, "personalise", bool),
            compare=setting(config, "compare", bool),
            memory=setting(config, "memory", str) if "memory" in config else "",
            run=setting(config, "run", str) if "run" in config else "",
            objective=read_objective(config),
            task=read_task(config),
        )


def _expert_prior(priors: State) -> Tensor:
    if "expert" not in priors:
        raise WireError(f"the request has priors of {sorted(priors)}; expected that of the expert")
    return priors["expert"]


@dataclass(frozen=True)
class EvaluateReply:
    """Accuracies on the client's own test data; ``personal_accuracy`` only where it was asked for.

    ``personal_steps`` are the optimiser steps that the fine-tuning took. ``universal_fit`` and ``expert_fit``, where
    they were asked for, are mean cross-entropies (nats) on the client's training data, with its own label prior.
    ``universal_loss`` is None where it is kept back.
    """

    num_examples: Annotated[
        int,
        Whole(
            "weight of its accuracy and loss in the universal expert's where the server has no test set; counts up to "
            "`max-weight` times the median of the others'",
            low=1,
            high=MOST_EXAMPLES,
        ),
    ]
    universal_accuracy: Annotated[float, Real(OWN_ROW, high=1.0)]
    universal_loss: Annotated[
        float | None,
        Real(
            "reported as a mean where the server has no test set; counts up to `max-weight` times the median",
            high=LARGEST_LOSS,
        ),
    ]
    expert_accuracy: Annotated[float, Real(OWN_ROW, high=1.0)]
    personal_accuracy: Annotated[float | None, Real(OWN_ROW, high=1.0)] = None
    personal_steps: Annotated[int, Whole("added up in `personal_steps`", high=MOST_STEPS)] = 0
    universal_fit: Annotated[float | None, Real(FITS, high=LARGEST_LOSS)] = None
    expert_fit: Annotated[float | None, Real(FITS, high=LARGEST_LOSS)] = None

    def to_message(self, reply_to: Message) -> Message:
        """Return the reply."""
        metrics = MetricRecord(
            {
                "num-examples": self.num_examples,
                "universal-accuracy": self.universal_accuracy,
                "expert-accuracy": self.expert_accuracy,
                "personal-steps": self.personal_steps,
            }
        )
        optional = {
            "universal-loss": self.universal_loss,
            "personal-accuracy": self.personal_accuracy,
            "universal-fit": self.universal_fit,
            "expert-fit": self.expert_fit,
        }
        for key, value in optional.items():
            if value is not None:
                metrics[key] = value
        return Message(RecordDict({"metrics": metrics}), reply_to=reply_to)

    @classmethod
    def from_message(cls, message: Message, personal: bool | None = None) -> "EvaluateReply":
        """Read the reply; ``personal``: whether `personal_accuracy` was asked for, and counts; None: if it is there.

        Raises
        ------
        WireError
            If it lacks a number that was asked for, or one is not allowed.
        """
        told = {"universal_loss": None} | read_fields(cls, message)
        if personal and "personal_accuracy" not in told:
            raise WireError("personal-accuracy is missing; it was asked for")
        return cls(**told | ({"personal_accuracy": None} if personal is False else {}))
