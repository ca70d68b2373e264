"""The clients and the work of benchmarks/simulation.py, simulated by pfl (Granqvist et al. 2024)."""

from collections.abc import Callable
from functools import partial

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

from disue.data import Federation
from disue.models import build_model
from server_app.config import RunConfig


class Learner(nn.Module):
    """A network as pfl wants it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self.network(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return the loss for an evaluation; there is none here."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class AfterRound(TrainingProcessCallback):  # type: ignore[misc]
    """Calls something after every round."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Call it, and go on."""
        self.call()
        return False, Metrics()


def run(config: RunConfig, federation: Federation, clients: int, after_round: Callable[[], None]) -> None:
    """Train for as many rounds as the config says."""
    users = [federation.client(i).train for i in range(clients)]
    data = FederatedDataset(
        lambda user: PyTorchTensorDataset((users[user].x, users[user].y)),
        iter(list(range(clients)) * (2 * config.num_server_rounds)).__next__,
    )
    task = federation.task
    learner = Learner(build_model(config.model, task.shape, task.num_classes, config.seed))
    model = PyTorchModel(
        learner,
        local_optimizer_create=partial(torch.optim.SGD, momentum=config.momentum),
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=config.num_server_rounds,
            evaluation_frequency=10**6,
            train_cohort_size=clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_num_epochs=config.local_epochs,
            local_learning_rate=config.learning_rate,
            local_batch_size=config.batch_size,
        ),
        callbacks=[AfterRound(after_round)],
    )
