"""What a run directory holds for the report."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from tests_support import numbered_classes, run_context

from disue.data import build_federation
from disue.models import build_model
from server_app.callbacks.report_data import ReportData, chosen_for_similarity, map_of
from server_app.run_data import AgreedData
from strategies.rounds.stats import RoundStats


def rows_of(path):  # type: ignore[no-untyped-def]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_the_map_the_similarities_the_labels_and_the_confusion(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=7, num_clusters=2)
    names = json.loads((result.directory / "portrait.json").read_text())
    tensors = load_file(result.directory / "portrait.safetensors")
    clients = [f"client-{i}" for i in range(7)]
    assert names["map"] == clients
    assert sorted(names["similarity"]) == clients
    assert tensors["map"].shape == (7, 2)
    assert 0.0 < names["map-share"] <= 1.0
    assert torch.allclose(tensors["similarity"].diagonal(), torch.ones(7))

    clusters = {row["client"]: row["cluster"] for row in rows_of(result.directory / "clients.csv")}
    assert [clusters[name] for name in names["similarity"]] == sorted(clusters.values())
    assert {row["client"]: row["cluster"] for row in rows_of(result.directory / "membership.csv")} == clusters

    federation = build_federation(result.config, 7)
    labels = federation.dataset.train.y.numpy()
    assert (names["labels-source"], names["labels"]) == ("told", clients)
    for row, part in zip(tensors["labels"], federation.train_parts, strict=True):
        assert row.tolist() == np.bincount(labels[part], minlength=10).tolist()

    model = build_model("mlp", federation.dataset.shape, 10)
    model.load_state_dict(load_file(result.directory / "universal.safetensors"))
    test = federation.global_test()
    expected = confusion_matrix(test.y, model(test.x).argmax(dim=1), labels=range(10))
    assert tensors["confusion"].tolist() == expected.tolist()


def test_of_many_clients_the_map_shows_some_of_every_cluster(run, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("server_app.callbacks.report_data.MOST_ON_MAP", 4)
    result = run(clients=7, num_clusters=2)
    names = json.loads((result.directory / "portrait.json").read_text())
    tensors = load_file(result.directory / "portrait.safetensors")
    clusters = {row["client"]: row["cluster"] for row in rows_of(result.directory / "clients.csv")}
    assert len(names["map"]) == len(tensors["map"]) == len(tensors["similarity"]) == 4
    assert {clusters[name] for name in names["map"]} == {"0", "1"}
    assert sorted(names["similarity"]) == names["map"]


def test_clients_that_tell_nothing_are_drawn_from_the_scenario(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=4, method="oracle", scenario="label-swap", num_groups=2)
    names = json.loads((result.directory / "portrait.json").read_text())
    tensors = load_file(result.directory / "portrait.safetensors")
    assert names["labels-source"] == "scenario"
    assert "map" not in tensors
    federation = build_federation(result.config, 4)
    for i, row in enumerate(tensors["labels"]):
        assert row.tolist() == torch.bincount(federation.client(i).train.y, minlength=10).tolist()


def test_only_moves_are_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    report_data, context = ReportData(), run_context(tmp_path, AgreedData(numbered_classes(2)))
    report_data.begin(context)
    for number, clusters in enumerate([{"a": 0, 'b,"': 1}, {"a": 0, 'b,"': 1}, {"a": 2, 'b,"': 1, "c": 0}], start=1):
        context.strategy.stats = RoundStats(number, clusters=clusters)
        report_data.after_round(context, {})
    moves = [tuple(row.values()) for row in rows_of(tmp_path / "membership.csv")]
    assert moves == [("1", "a", "0"), ("1", 'b,"', "1"), ("3", "a", "2"), ("3", "c", "0")]


def test_the_map_is_that_of_principal_components() -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 5)) * [5, 3, 1, 1, 1]
    points, share = map_of(vectors @ vectors.T)
    pca = PCA(2).fit(vectors)
    assert np.abs(points) == pytest.approx(np.abs(pca.transform(vectors)))
    assert share == pytest.approx(pca.explained_variance_ratio_.sum())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_alike_clients_are_one_point_on_the_map(count: int) -> None:
    points, share = map_of(np.ones((count, count)))
    assert not points.any()
    assert share == 1.0


def test_a_large_matrix_shows_evenly_spaced_clients_of_every_cluster() -> None:
    names = [f"client-{i}" for i in range(1000)]
    clusters = {name: i % 10 for i, name in enumerate(names)}
    chosen = chosen_for_similarity(names, clusters, {}, most=100)
    assert len(set(chosen)) == 100
    assert [clusters[name] for name in chosen] == [cluster for cluster in range(10) for _ in range(10)]
