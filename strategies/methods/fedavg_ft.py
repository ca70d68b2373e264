"""FedAvg with local fine-tuning: the shared model, and a personal one for every client after it.

Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020; Cheng, Chadha and Duchi,
"Fine-tuning is Fine in Federated Learning", 2021.
"""

from collections.abc import Iterable
from dataclasses import replace

from flwr.app import Message, MetricRecord

from strategies.methods.fedavg import FedAvg


class FedAvgFT(FedAvg):
    """Federated averaging; a client's own expert is the shared model after its own local training."""

    always_personalise = True

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Take the accuracy after fine-tuning for that of the client's expert."""
        result = super().aggregate_evaluate(server_round, replies)
        self.outcome.evaluations = {
            name: reply if reply.personal_accuracy is None else replace(reply, expert_accuracy=reply.personal_accuracy)
            for name, reply in self.outcome.evaluations.items()
        }
        return result
