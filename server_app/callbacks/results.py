"""What a run leaves at its end: its models, who is in which cluster, and who taught what."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from disue.files import folder_inside, whole, write_tensors, write_whole
from disue.wire import EvaluateReply
from server_app.callbacks.base import Callback, RunContext, RunEnd
from strategies.distillation.teachers import VoteSummary
from strategies.methods.base import MethodState
from strategies.rounds.registry import Client

COLUMNS = (
    *("client", "group", "model", "cluster", "examples"),
    *("universal_accuracy", "expert_accuracy", "personal_accuracy"),
)


class Results(Callback):
    """Writes ``clients.csv``, ``teaching.csv`` and models; last the universal ones: with them all is there."""

    def end(self, run: RunContext, end: RunEnd) -> None:
        """Write what the last round came to."""
        if end.state is None:
            return
        strategy, directory = run.strategy, run.directory
        gate = strategy.method.gate(end.state, strategy.descriptions)
        write_clients(directory, strategy.registry.known, end.state.clusters, strategy.stats.evaluations)
        if end.state.votes is not None:
            write_votes(directory, end.state.votes, run.data.task.num_strata)
        if gate.experts or gate.descriptions:
            gate.save(directory)
        write_models(directory, end.state, run.config.model, run.config.dataset)


def write_clients(
    directory: Path,
    clients: Sequence[Client],
    clusters: Mapping[str, int],
    evaluations: Mapping[str, EvaluateReply],
) -> None:
    """Write ``clients.csv``."""
    with whole(directory / "clients.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for client in clients:
            reply = evaluations.get(client.name)
            accuracies = (reply.universal_accuracy, reply.expert_accuracy, reply.personal_accuracy) if reply else ()
            group = "" if client.group < 0 else client.group
            cluster = clusters.get(client.name, "")
            writer.writerow(
                [client.name, group, client.model, cluster, client.num_examples or ""]
                + [f"{value:.4f}" if value is not None else "" for value in accuracies]
            )


def write_votes(directory: Path, votes: VoteSummary, num_strata: int) -> None:
    """Write ``teaching.csv``: who taught what in the last round."""
    weights, counts = votes.by_stratum(num_strata)
    lines = ["expert,class,weight,samples\n"]
    for expert, row in zip(votes.experts, weights.tolist(), strict=True):
        lines += [
            f"{expert},{label},{weight:.4f},{count}\n"
            for label, (weight, count) in enumerate(zip(row, counts.tolist(), strict=True))
        ]
    write_whole(directory / "teaching.csv", "".join(lines))


def write_models(directory: Path, state: MethodState, main: str, dataset: str) -> None:
    """Write the experts, and then the universal models, that of the run's own architecture at the end."""
    experts = folder_inside(directory, "experts")
    for team, expert in state.experts.items():
        told = {"model": team.model, "dataset": dataset}
        write_tensors(experts / f"expert-{team.label(main)}.safetensors", expert, told)
    for model, universal in reversed(list(state.universals.items())):
        name = "universal" if model == main else f"universal-{model}"
        write_tensors(directory / f"{name}.safetensors", universal, {"model": model, "dataset": dataset})
