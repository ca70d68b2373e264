"""FedAvg with local fine-tuning: the shared model, and a personal one for every client after it.

Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020; Cheng, Chadha and Duchi,
"Fine-tuning is Fine in Federated Learning", 2021.
"""

from collections.abc import Mapping
from dataclasses import replace

from disue.wire import EvaluateReply
from strategies.methods.base import METHODS, Evaluated, MethodState
from strategies.methods.declarations import Needs
from strategies.methods.fedavg import FedAvg
from strategies.rounds.round import Round


@METHODS.register("fedavg-ft")
class FedAvgFT(FedAvg):
    """Federated averaging; a client's own expert is the shared model after its own local training."""

    needs = Needs(personal=True)

    def after_evaluation(
        self, state: MethodState, evaluations: Mapping[str, EvaluateReply], round: Round
    ) -> Evaluated[MethodState]:
        """Take the accuracy after fine-tuning for that of the client's expert."""
        tuned = {
            name: reply if reply.personal_accuracy is None else replace(reply, expert_accuracy=reply.personal_accuracy)
            for name, reply in evaluations.items()
        }
        return Evaluated(state, tuned)
