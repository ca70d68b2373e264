"""The Flower ClientApp. The same code answers in a Ray actor, in the inline engine and on a real machine."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from client_app.data import introduce, open_data
from client_app.privacy import Plain, discreet, discretion
from client_app.secure import mask, share_out, unmask
from client_app.signature import DESCRIPTIONS
from client_app.training import TrainingResult, label_counts, train
from disue.config import RunConfig
from disue.data import Examples
from disue.device import prepare_device
from disue.metrics import Score, log_prior, score
from disue.models import MODELS, Classifier, Shape, State, build_model, fill, get_state
from disue.nodes import NodeConfig
from disue.objective import LocalObjective
from disue.seeding import torch_rng
from disue.task import Task
from disue.wire import (
    DescribeReply,
    DescribeRequest,
    EvaluateReply,
    EvaluateRequest,
    HelloRequest,
    Parcels,
    ShareRequest,
    TrainReply,
    TrainRequest,
    UnmaskRequest,
)

app = ClientApp()


class LocalClient:
    """This client: its name, its data, its device, and a model to work with."""

    def __init__(self, context: Context, task: Task | None) -> None:
        self.config = RunConfig.from_flower(context.run_config)
        node = NodeConfig.from_flower(context.node_config)
        self.context = context
        self.name = node.client
        self.node = node
        self.model_name = own_model(node, self.config)
        self.task, self.data = open_data(self.config, node, task)
        self.num_classes = self.task.num_classes
        self.device = prepare_device(self.config.device)

    def model(self, state: State) -> Classifier:
        """Return a model of the client's own architecture with these parameters, until the next call."""
        model = _workpiece(self.model_name, self.task.shape, self.num_classes)
        fill(model, state)
        return model

    def score(self, state: State, examples: Examples, logit_shift: Tensor | None = None) -> Score:
        """Evaluate a model of the client's own architecture."""
        return score(self.model(state), examples, self.device, logit_shift)

    def train(self, state: State, objective: LocalObjective, rng: torch.Generator) -> tuple[Classifier, TrainingResult]:
        """Return what comes of a model when it is trained on this client's data."""
        model, data = self.model(state), self.data.train
        return model, train(model, data, self.config, objective, rng, self.device, self.num_classes)

    def initial_model(self) -> Classifier:
        """Return what the run's own architecture started from, whichever the client's is; the run seed gives it."""
        return build_model(self.config.model, self.task.shape, self.num_classes, self.config.seed)

    def own_prior(self, objective: LocalObjective) -> Tensor | None:
        """Return the log label shares that a model trained with this objective lacks; None: it lacks nothing."""
        if objective.local_loss != "balanced":
            return None
        return log_prior(label_counts(self.data.train.y, self.num_classes))

    def prior_shift(self, request: EvaluateRequest) -> Tensor | None:
        """Return what to add to the logits of the client's own expert, so that they carry the client's label prior."""
        if request.expert_prior is None:
            return self.own_prior(request.objective)
        return log_prior(label_counts(self.data.train.y, self.num_classes)) - request.expert_prior

    def fits(self, request: EvaluateRequest) -> tuple[float, float]:
        """Return the losses of the universal and of the own expert on the training data, with the client's prior."""
        own = log_prior(label_counts(self.data.train.y, self.num_classes))
        expert = self.score(request.expert or request.universal, self.data.train, self.prior_shift(request))
        return self.score(request.universal, self.data.train, own).loss, expert.loss

    def best_of(self, candidates: Sequence[State], objective: LocalObjective) -> int:
        """Return the index of the model with the lowest loss on this client's training data."""
        prior = self.own_prior(objective)
        losses = [self.score(state, self.data.train, prior).loss for state in candidates]
        return min(range(len(losses)), key=losses.__getitem__)

    def discretion(self, purpose: str, server_round: int = 0) -> Plain:
        """Return what decides what leaves."""
        return discretion(self.config, self.node, purpose, server_round, self.context)

    def rng(self, purpose: str, server_round: int) -> torch.Generator:
        """Return the generator for one purpose, client and round."""
        return torch_rng(self.config.seed, purpose, self.name, server_round)


@lru_cache(maxsize=4)
def _workpiece(model: str, shape: Shape, num_classes: int) -> Classifier:
    """Return a model to be filled: to build one for each message takes as long as a training step."""
    return build_model(model, shape, num_classes)


def own_model(node: NodeConfig, config: RunConfig) -> str:
    """Return the architecture that a client trains: its node config's ``model``, or the run's for its partition.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if node.model is not None:
        MODELS.pick(node.model, "model in the node config")
        return node.model
    if node.partition_id is None or node.num_partitions is None:
        return config.model
    return config.client_model(node.partition_id, node.num_partitions)


@app.query()
@discreet
def hello(message: Message, context: Context) -> Message:
    """Say who this is."""
    HelloRequest.check(message)
    config, node = RunConfig.from_flower(context.run_config), NodeConfig.from_flower(context.node_config)
    reply = introduce(config, node, own_model(node, config))
    return discretion(config, node, "hello").hello(reply).to_message(message)


@app.query("describe")
@discreet
def describe(message: Message, context: Context) -> Message:
    """Say what the data are like."""
    request = DescribeRequest.from_message(message)
    client = LocalClient(context, request.task)
    description = DESCRIPTIONS[request.description]
    share = client.config.share_label_counts
    signature = description(client.initial_model(), client.data.train, client.device, share)
    told = client.discretion("describe").description(request.description, signature)
    return DescribeReply(told).to_message(message)


@app.train()
@discreet
def train_locally(message: Message, context: Context) -> Message:
    """Phase L: train from the given start, or from the best candidate, on this client's data."""
    request = TrainRequest.from_message(message)
    client = LocalClient(context, request.task)
    discretion = client.discretion("train", request.server_round)
    candidates = discretion.candidates(request.candidates)
    choice = client.best_of(candidates, request.objective) if candidates else None
    start = request.start or request.candidates[choice or 0]
    signature = None
    if request.signature:
        universal = client.model(request.universal or start)
        signature = discretion.signature(universal, client.data.train, client.device)
    model, result = client.train(start, request.objective, client.rng("train", request.server_round))
    reply = TrainReply(
        state=get_state(model),
        num_examples=len(client.data.train),
        train_loss=result.loss,
        steps=result.steps,
        signature=signature,
        choice=choice,
    )
    return discretion.training(reply, start).to_message(message)


@app.query("share")
@discreet
def share_secrets(message: Message, context: Context) -> Message:
    """Secure aggregation: share secrets out among the members of a sum."""
    name = NodeConfig.from_flower(context.node_config).client
    return share_out(ShareRequest.from_message(message), name, context).to_message(message)


@app.query("mask")
@discreet
def mask_vector(message: Message, context: Context) -> Message:
    """Secure aggregation: send what was trained, under masks."""
    name = NodeConfig.from_flower(context.node_config).client
    return mask(Parcels.from_request(message), name, context).to_message(message)


@app.query("unmask")
@discreet
def unmask_sum(message: Message, context: Context) -> Message:
    """Secure aggregation: help to take the masks off the sum."""
    return unmask(UnmaskRequest.from_message(message), context).to_message(message)


@app.evaluate()
@discreet
def evaluate_locally(message: Message, context: Context) -> Message:
    """Evaluate the universal expert, the own expert and, if asked, the own expert after fine-tuning.

    Where the client uses an expert of its own, its label prior stands for the one in the expert's logits; a model
    trained with the balanced loss carries none. The universal expert is for anyone and gets none.
    """
    request = EvaluateRequest.from_message(message)
    client = LocalClient(context, request.task)
    test = client.data.test
    universal = client.score(request.universal, test)
    expert = request.expert or request.universal
    expert_score = client.score(expert, test, client.prior_shift(request))
    universal_fit, expert_fit = client.fits(request) if request.compare else (None, None)
    personal_accuracy, personal_steps = None, 0
    if request.personalise:
        rng = client.rng("personalise", request.server_round)
        personal, result = client.train(expert, request.objective, rng)
        personal_steps = result.steps
        personal_accuracy = score(personal, test, client.device, client.own_prior(request.objective)).accuracy
    reply = EvaluateReply(
        num_examples=len(test),
        universal_accuracy=universal.accuracy,
        universal_loss=universal.loss,
        expert_accuracy=expert_score.accuracy,
        personal_accuracy=personal_accuracy,
        personal_steps=personal_steps,
        universal_fit=universal_fit,
        expert_fit=expert_fit,
    )
    return client.discretion("evaluate", request.server_round).evaluation(reply, client.num_classes).to_message(message)
