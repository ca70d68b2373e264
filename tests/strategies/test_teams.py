"""Experts of clusters and of the architectures in them, against loops."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.teams import Team, members_of, renew, teams_of
from strategies.updates import ClientUpdate

WIDTHS = {"small": 2, "large": 5}

clients = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(sorted(WIDTHS)), st.integers(1, 99), st.booleans()), min_size=1
)


def update(name: str, model: str, examples: int) -> ClientUpdate:
    state = {"w": torch.randn(WIDTHS[model], generator=torch.Generator().manual_seed(len(name) + examples))}
    return ClientUpdate(name, state, state, examples)


@given(clients)
def test_a_team_is_averaged_alone_and_nobody_is_left_out(drawn: list[tuple[int, str, int, bool]]) -> None:
    names = [f"client-{i}" for i in range(len(drawn))]
    clusters = {name: cluster for name, (cluster, *_) in zip(names, drawn, strict=True)}
    models = {name: model for name, (_, model, *_) in zip(names, drawn, strict=True)}
    updates = [
        update(name, model, examples)
        for name, (_, model, examples, sampled) in zip(names, drawn, strict=True)
        if sampled
    ]
    members = members_of(updates, teams_of(clusters, models))
    assert list(members) == sorted({(clusters[u.name], models[u.name]) for u in updates})
    for team, group in members.items():
        assert [u.name for u in group] == [u.name for u in updates if (clusters[u.name], models[u.name]) == team]


def test_a_part_of_a_cluster_that_is_cut_off_inherits_from_its_own_architecture() -> None:
    names = ["a", "b", "c", "d"]
    models = dict(zip(names, ["small", "large", "small", "large"], strict=True))
    before = teams_of(dict.fromkeys(names, 0), models)
    now = teams_of({"a": 0, "b": 0, "c": 1, "d": 1}, models)
    known = {Team(0, "small"): "old small", Team(0, "large"): "old large"}
    assert renew(known, {Team(1, "large"): "new large"}, now, before) == {
        Team(0, "large"): "old large",
        Team(0, "small"): "old small",
        Team(1, "large"): "new large",
        Team(1, "small"): "old small",
    }
    assert renew({Team(0, "small"): "old small"}, {}, now, before).keys() == {Team(0, "small"), Team(1, "small")}


def test_a_client_that_changes_its_architecture_leaves_its_team() -> None:
    known = {Team(0, "small"): "small", Team(0, "large"): "large"}
    now = teams_of({"a": 0}, {"a": "large"})
    assert renew(known, {}, now, teams_of({"a": 0}, {"a": "large"})) == {Team(0, "large"): "large"}


def test_labels_name_the_architecture_unless_it_is_the_runs_own() -> None:
    assert [Team(3, model).label("cnn") for model in ("cnn", "mlp")] == ["3", "3-mlp"]
