"""One client in the process that answers for it: its name, its data, its device, and a model to work with."""

import hmac
import json
from collections.abc import Sequence
from functools import lru_cache

import torch
from flwr.app import Context
from torch import Tensor

from client_app.data import open_data
from client_app.memory import Prepared, memory_of
from client_app.node import this_node
from client_app.release import ReleasePolicy, choose_policy
from client_app.store import ClientStore
from client_app.train import TrainingResult, output_shift, train
from disue.config import ClientConfig
from disue.data import Examples
from disue.device import prepare_device
from disue.metrics import Evaluation, evaluate
from disue.models import MODELS, Build, Classifier, State, build_model, fill
from disue.nodes import NodeConfig
from disue.objective import LocalObjective
from disue.seeding import torch_rng
from disue.tasks import ImageClassification, Shape
from disue.wire import EvaluateRequest
from disue.wire.describe import DIGEST_LENGTH


class LocalClient:
    """This client: its name, its data, its device, and a model to work with."""

    def __init__(self, context: Context, task: ImageClassification | None) -> None:
        self.config = _checked(json.dumps(context.run_config))
        node = this_node(context)
        self.context = context
        self.name = node.client
        self.node = node
        self.model_name = own_model(node, self.config)
        self.task, self.data = open_data(self.config, node, task)
        self.device = prepare_device(self.config.device)

    def model(self, state: State) -> Classifier:
        """Return a model of the client's own architecture with these parameters, until the next call."""
        name, task = self.model_name, self.task
        model = workpiece(name, MODELS[name], task.shape, task.num_outputs, self.config.seed)
        fill(model, state)
        return model

    def evaluate(self, state: State, examples: Examples, shift: Tensor | None = None) -> Evaluation:
        """Evaluate a model of the client's own architecture."""
        return evaluate(self.task, self.model(state), examples, self.device, shift)

    def train(
        self, begun: Prepared, objective: LocalObjective, rng: torch.Generator, server_round: int
    ) -> tuple[Classifier, TrainingResult]:
        """Return what comes of a model when it is trained on this client's data."""
        model, data, config = self.model(begun.start), self.data.train, self.config
        more = begun.drift, begun.anchor, server_round
        return model, train(model, data, config, objective, rng, self.device, self.task, *more)

    def own_expert(self, request: EvaluateRequest) -> State:
        """Return the client's own expert: the one that it was sent, with what it kept of its own."""
        sent = request.expert or request.universal
        if not request.memory:
            return sent
        memory = memory_of(request.memory)
        kept = self.store(request.run).read(request.memory, request.server_round + 1, memory.part(sent))
        return memory.personal(sent, kept)

    def store(self, run: str) -> ClientStore:
        """Return where this client's memory of a run is."""
        return ClientStore(self.context, self.name, run, self.node.state_path)

    def digest(self, run: str) -> str:
        """Return what tells the training data from any others that this client has in the run, and from nobody else's.

        Keyed with the run and the name: the same data have another digest in another run, or at another client.
        """
        own = self.name.encode() + b"\0" + self.data.train_hash
        return hmac.digest(run.encode(), own, "sha256").hex()[:DIGEST_LENGTH]

    def initial_model(self) -> Classifier:
        """Return what the run's own architecture started from, whichever the client's is; the run seed gives it."""
        return build_model(self.config.model, self.task.shape, self.task.num_outputs, self.config.seed)

    def own_prior(self, objective: LocalObjective) -> Tensor | None:
        """Return the log label shares that a model trained with this objective lacks; None: it lacks nothing."""
        return output_shift(self.task, objective, self.data.train.y)

    def prior_shift(self, request: EvaluateRequest) -> Tensor | None:
        """Return what to add to the logits of the client's own expert, so that they carry the client's label prior."""
        own = self.task.log_prior(self.data.train.y)
        if request.expert_prior is None or own is None:
            return self.own_prior(request.objective)
        return own - request.expert_prior

    def fits(self, request: EvaluateRequest, expert: State) -> tuple[float, float]:
        """Return the losses of the universal and of the own expert on the training data, with the client's prior."""
        own = self.evaluate(expert, self.data.train, self.prior_shift(request))
        return self.fit(request.universal), own.loss

    def fit(self, state: State) -> float:
        """Return the loss of a model on the training data, with the client's prior."""
        return self.evaluate(state, self.data.train, self.task.log_prior(self.data.train.y)).loss

    def best_of(self, candidates: Sequence[State], objective: LocalObjective) -> int:
        """Return the index of the model with the lowest loss on this client's training data."""
        prior = self.own_prior(objective)
        losses = [self.evaluate(state, self.data.train, prior).loss for state in candidates]
        return min(range(len(losses)), key=losses.__getitem__)

    def policy(self, purpose: str, server_round: int = 0) -> ReleasePolicy:
        """Return what decides what leaves."""
        return choose_policy(self.config, self.node, purpose, server_round, self.context)

    def rng(self, purpose: str, server_round: int) -> torch.Generator:
        """Return the generator for one purpose, client and round."""
        return torch_rng(self.config.seed, purpose, self.name, server_round)


@lru_cache(maxsize=4)
def workpiece(name: str, build: Build, shape: Shape, num_outputs: int, seed: int) -> Classifier:
    """Return a model to be filled: to build one for each message takes as long as a training step.

    ``build`` is what the name stands for now.
    """
    return build_model(name, shape, num_outputs, seed)


@lru_cache(maxsize=8)
def _checked(run_config: str) -> ClientConfig:
    """Return the config of JSON: a process checks the same one once, not for each message."""
    return ClientConfig.from_flower(json.loads(run_config))


def own_model(node: NodeConfig, config: ClientConfig) -> str:
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
