"""What distilling methods share: the server's own model, proxy set and device, and the round's lesson."""

from dataclasses import dataclass
from logging import WARNING

import torch
from flwr.common.logger import log
from torch import Tensor

from disue.metrics import predict_logits
from disue.models import Classifier, State
from disue.seeding import torch_rng
from strategies.base import RoundOutcome
from strategies.distiller import Distiller


@dataclass(frozen=True)
class Server:
    """What the server computes with: an empty model to fill, the proxy set, the device, the run seed."""

    model: Classifier
    proxy: Tensor
    device: torch.device
    seed: int

    def fill(self, state: State) -> Classifier:
        """Return the model with these parameters; it is the same object every time."""
        self.model.load_state_dict(state)
        return self.model

    def proxy_logits(self, state: State) -> Tensor:
        """Return what a model says of the proxy set, (samples, classes)."""
        return predict_logits(self.fill(state), self.proxy, self.device)

    def proxy_features(self, state: State) -> Tensor:
        """Return the proxy set's features under a model, (samples, features)."""
        return predict_logits(self.fill(state).body, self.proxy, self.device)

    def distil(self, distiller: Distiller, average: State, targets: Tensor, outcome: RoundOutcome) -> State:
        """Teach the average the targets, (samples, classes) logits; log and count what the guard did."""
        generator = torch_rng(self.seed, "distil", outcome.server_round)
        result = distiller.distil(self.fill(average), self.proxy, targets, generator, self.device)
        if result.kept_average:
            log(WARNING, "round %s: the guard kept the average, the student was not better", outcome.server_round)
        outcome.extra |= {
            "guard_kept_average": int(result.kept_average),
            "distill_steps": result.steps,
            "divergence_average": result.average_loss,
            "divergence_student": result.student_loss,
        }
        return result.state
