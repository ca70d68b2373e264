"""DisUE: clients train, clusters become experts, and the experts teach one universal expert.

"Distilled Universal Expert", arXiv:2506.20285.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

import torch
from flwr.common.logger import log
from torch import Tensor

from disue.metrics import predict_logits
from disue.models import Classifier, State, interpolate
from disue.objective import PLAIN, LocalObjective
from disue.seeding import torch_rng
from strategies.aggregators import weighted_average
from strategies.base import FederatedStrategy, Participation
from strategies.clusterers import Clusterer
from strategies.distiller import Distiller
from strategies.matching import match_clusters
from strategies.roster import Roster
from strategies.signatures import SignatureBook
from strategies.teachers import Evidence, merge_prototypes, teacher_logits
from strategies.updates import ClientUpdate


@dataclass(frozen=True)
class Server:
    """What the server computes with: an empty model to fill, the proxy set, the device, the run seed."""

    model: Classifier
    proxy: Tensor
    device: torch.device
    seed: int


class DisUE(FederatedStrategy):
    """Phases C and U.

    Parameters
    ----------
    roster : Roster
        The clients that are connected.
    participation : Participation
        Who is asked, and how many must answer.
    server : Server
        Model, proxy set, device and seed.
    signature : callable
        From an update to the vector that clients are compared by.
    clusterer : Clusterer
        Groups the clients.
    teacher : callable
        From evidence to each expert's weight per proxy sample.
    distiller : Distiller
        Teaches the universal expert.
    prior_correction : bool (default: True)
        Take each cluster's label prior out of its expert's logits.
    signature_memory : float (default: 0.5)
        Share of the past in a client's running signature.
    expert_share : float (default: 0.0)
        What clients start from: 0 the universal expert (the paper), 1 their own cluster's expert, and in
        between a mixture of both.
    objective : LocalObjective
        What clients minimise.
    """

    needs_signature = True

    def __init__(
        self,
        roster: Roster,
        participation: Participation,
        server: Server,
        signature: Callable[[ClientUpdate], Tensor],
        clusterer: Clusterer,
        teacher: Callable[[Evidence], Tensor],
        distiller: Distiller,
        prior_correction: bool = True,
        signature_memory: float = 0.5,
        expert_share: float = 0.0,
        objective: LocalObjective = PLAIN,
    ) -> None:
        super().__init__(roster, participation, objective)
        self.server = server
        self.signature = signature
        self.clusterer = clusterer
        self.teacher = teacher
        self.distiller = distiller
        self.prior_correction = prior_correction
        self.expert_share = expert_share
        self.signatures = SignatureBook(signature_memory)
        self.knowledge: dict[int, tuple[Tensor, Tensor]] = {}  # label counts and prototypes of each cluster

    def start_for(self, name: str) -> State:
        """Return the universal expert, or its mixture with the client's own expert."""
        expert = self.expert_for(name)
        if expert is None or self.expert_share == 0.0:
            return self.universal
        return interpolate(self.universal, expert, self.expert_share)

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> State:
        """Cluster the clients, average each cluster into its expert, and distil the experts."""
        self.average = weighted_average(updates)
        with self.outcome.timed("clustering"):
            before, self.clusters = self.clusters, self._group_clients(updates)
            self._update_experts(self._members(updates), before)
        with self.outcome.timed("distillation"):
            return self._distil(server_round)

    # --- phase C: clustering and aggregation -------------------------------------------------------

    def _group_clients(self, updates: Sequence[ClientUpdate]) -> dict[str, int]:
        for update in updates:
            self.signatures.enter(update.name, self.signature(update))
        labels = self.clusterer.fit_predict(self.signatures.embedding())
        return match_clusters(self.clusters, dict(zip(self.signatures.names, map(int, labels), strict=True)))

    def _members(self, updates: Sequence[ClientUpdate]) -> dict[int, list[ClientUpdate]]:
        members: dict[int, list[ClientUpdate]] = {}
        for update in updates:
            members.setdefault(self.clusters[update.name], []).append(update)
        return dict(sorted(members.items()))

    def _update_experts(self, members: dict[int, list[ClientUpdate]], before: dict[str, int]) -> None:
        """Average the clusters that were sampled; the others keep their expert, and a split hands its on."""
        experts, knowledge = dict(self.experts), dict(self.knowledge)
        self.experts, self.knowledge = {}, {}
        for k in sorted(set(self.clusters.values())):
            if k in members:
                self.experts[k] = weighted_average(members[k])
                self.knowledge[k] = merge_prototypes([update.signature for update in members[k] if update.signature])
                continue
            parents = Counter(
                before[name] for name, cluster in self.clusters.items() if cluster == k and name in before
            )
            parent = k if k in experts else parents.most_common(1)[0][0]
            if parent != k:
                log(INFO, "cluster %s is new and was not sampled: it starts with the expert of cluster %s", k, parent)
            self.experts[k], self.knowledge[k] = experts[parent], knowledge[parent]

    # --- phase U: universal distillation -----------------------------------------------------------

    def _distil(self, server_round: int) -> State:
        """Teach the average what the experts know; one expert is the average, and nothing is taught."""
        self.outcome.extra |= {"num_teachers": len(self.experts), "guard_kept_average": 0, "distill_steps": 0}
        if len(self.experts) < 2 or self.distiller.steps == 0:
            return self.average
        evidence = self._evidence()
        targets = teacher_logits(evidence, self.teacher(evidence), self.prior_correction)
        result = self.distiller.distil(
            self._model(self.average),
            self.server.proxy,
            targets,
            torch_rng(self.server.seed, "distil", server_round),
            self.server.device,
        )
        if result.kept_average:
            log(WARNING, "round %s: the guard kept the average, the student was not better", server_round)
        self.outcome.extra |= {
            "guard_kept_average": int(result.kept_average),
            "distill_steps": result.steps,
            "divergence_average": result.average_loss,
            "divergence_student": result.student_loss,
        }
        return result.state

    def _evidence(self) -> Evidence:
        proxy, device = self.server.proxy, self.server.device
        logits = [predict_logits(self._model(expert), proxy, device) for expert in self.experts.values()]
        known = [self.knowledge[k] for k in self.experts]
        opening = self._model(self.universal)  # what the clients' prototypes were computed with
        return Evidence(
            expert_logits=torch.stack(logits),
            label_counts=torch.stack([counts for counts, _ in known]),
            features=predict_logits(opening.body, proxy, device),
            prototypes=torch.stack([prototypes for _, prototypes in known]),
        )

    def _model(self, state: State) -> Classifier:
        self.server.model.load_state_dict(state)
        return self.server.model
