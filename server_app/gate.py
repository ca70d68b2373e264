"""What a run keeps so that an expert can be chosen afterwards: see `disue.runs.gate`."""

from pathlib import Path

from disue.models import State
from disue.runs.gate import Gate, Knowledge, Space
from strategies.flower import FederatedStrategy
from strategies.methods.disue import DisUE


def save_gate(directory: Path, strategy: FederatedStrategy) -> None:
    """Write ``gate.safetensors`` if the method knows prototypes of its experts' clients, or their descriptions."""
    gate = gate_of(strategy)
    if gate.experts or gate.descriptions:
        gate.save(directory)


def gate_of(strategy: FederatedStrategy) -> Gate:
    """Return what the strategy knows after its last round."""
    described = [name for name in strategy.descriptions if name in strategy.clusters]
    gate = Gate(
        signature=strategy.needs_description,
        descriptions={name: strategy.descriptions[name] for name in described},
        clusters={name: strategy.clusters[name] for name in described},
    )
    if not isinstance(strategy, DisUE):
        return gate
    states: list[State] = []
    for team in strategy.team_experts:
        told = strategy.knowledge[team]
        if not any(told.model is state for state in states):
            states.append(told.model)
            gate.spaces.append(Space(team.model, told.model))
        space = next(i for i, state in enumerate(states) if told.model is state)
        gate.experts[team.label(strategy.model)] = Knowledge(
            team.cluster, told.label_counts, told.points, space, strategy.priors.get(team)
        )
    return gate
