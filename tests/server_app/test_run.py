"""One run through the inline engine: the real ServerApp's `execute` and the real ClientApp."""

import csv
import json
import tomllib
from pathlib import Path

import pytest
import torch
from common import FAST
from flwr.app import Context, RecordDict
from resuming import left_by
from safetensors import safe_open
from safetensors.torch import load_file
from tests_support import ARTEFACTS_OF_TWO, files_of

from client_app.app import app as client_app
from disue.data import build_federation
from disue.errors import ConfigError, DataError, FederationError
from disue.metrics import evaluate
from disue.models import build_model
from disue_cli.engines.inline import InlineGrid, run_inline, simulated_nodes
from server_app.app import app as server_app
from server_app.checks import check_model, check_sizes
from server_app.config import RunConfig
from server_app.run import execute, preflight
from server_app.run_directory import check_directory, default_directory

ROUND_KEYS = {
    *("round", "universal_accuracy", "universal_loss", "expert_accuracy", "personal_accuracy"),
    *("worst_decile_accuracy", "num_clusters", "ari", "nmi", "churn", "clients_ok", "clients_failed"),
    *("clients_rejected", "bytes_down", "bytes_up", "seconds_local", "seconds_clustering"),
    *("seconds_distillation", "seconds_evaluation"),
}


def without_timings(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]


def test_models_in_a_file_make_the_same_run(tmp_path: Path) -> None:
    for name, memory in (("in-memory", 1024), ("in-file", 0)):
        settings = FAST | {"num-clusters": 2, "reply-memory": memory, "output-dir": str(tmp_path / name)}
        run_inline(RunConfig.from_flower(settings), 4)
    inside, outside = left_by(tmp_path / "in-memory"), left_by(tmp_path / "in-file")
    for left in (inside, outside):
        del left["config.toml"]["run"]["reply-memory"], left["MODEL_CARD.md"]  # which tells it, too
    assert inside == outside


def test_the_run_directory_holds_what_the_design_says(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=7, num_clusters=2, report=True)
    assert files_of(result.directory) == ARTEFACTS_OF_TWO
    rows = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.rows
    assert [row["round"] for row in rows] == [1, 2]
    for row in rows:
        assert row.keys() >= ROUND_KEYS
    assert rows[0]["personal_accuracy"] is None
    assert rows[1]["personal_accuracy"] is not None

    summary = json.loads((result.directory / "summary.json").read_text())
    assert summary == result.summary
    assert (
        summary["status"],
        summary["method"],
        summary["scenario"],
        summary["seed"],
        summary["rounds"],
    ) == (
        "completed",
        "disue",
        "label-groups",
        0,
        2,
    )
    assert summary["universal_accuracy"] == rows[-1]["universal_accuracy"]
    assert summary["bytes_up"] == rows[0]["bytes_up"] + rows[1]["bytes_up"]

    settings = tomllib.loads((result.directory / "config.toml").read_text())
    assert RunConfig.from_flower(settings["run"]) == result.config
    assert settings["versions"].keys() >= {"flwr", "torch"}


def test_clients_csv_has_everyone_and_its_mean_is_the_metric(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=7)
    with (result.directory / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["client"] for row in rows] == [f"client-{i}" for i in range(7)]
    assert [row["group"] for row in rows] == ["0", "1", "2", "0", "1", "2", "0"]
    federation = build_federation(result.config, 7)
    assert [int(row["examples"]) for row in rows] == [len(part) for part in federation.train_parts]
    for key in ("expert_accuracy", "personal_accuracy"):
        mean = sum(float(row[key]) for row in rows) / 7
        assert mean == pytest.approx(result.summary[key], abs=1e-4)


def test_the_saved_universal_expert_has_the_reported_accuracy(run) -> None:  # type: ignore[no-untyped-def]
    result = run()
    federation = build_federation(result.config, 6)
    model = build_model("mlp", federation.dataset.shape, 10)
    model.load_state_dict(load_file(result.directory / "universal.safetensors"))
    measured = evaluate(federation.task, model, federation.global_test(), torch.device("cpu"))
    assert measured.metrics["accuracy"] == result.summary["universal_accuracy"]
    assert measured.loss == result.summary["universal_loss"]
    with safe_open(result.directory / "universal.safetensors", "pt") as file:
        assert json.loads(file.metadata()["disue"]) == {"model": "mlp", "dataset": "digits"}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run) -> None:  # type: ignore[no-untyped-def]
    first, again, other = run(seed=3), run(seed=3), run(seed=4)
    assert without_timings(first.rows) == without_timings(again.rows)
    assert (first.directory / "universal.safetensors").read_bytes() == (
        again.directory / "universal.safetensors"
    ).read_bytes()
    assert without_timings(first.rows) != without_timings(other.rows)


def test_the_server_app_runs_from_flowers_context(tmp_path: Path) -> None:
    run_config = RunConfig(
        output_dir=str(tmp_path / "r"), num_server_rounds=1, model="mlp", distill_steps=5
    ).to_flower()
    grid = InlineGrid(client_app, run_config, simulated_nodes(2))
    server_app(grid=grid, context=Context(1, 1, {}, RecordDict(), run_config))
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    ("values", "clients", "words"),
    [
        ({"method": "fedavgg"}, 4, "method: 'fedavgg' does not exist (did you mean 'fedavg'?); choose from"),
        ({"scenario": "rotations"}, 4, "scenario: 'rotations' does not exist"),
        ({"clusterer": "dbscan"}, 4, "clusterer: 'dbscan' does not exist"),
        (
            {"clusterer": "hdbscan", "num-clusters": 2},
            4,
            "num-clusters: got 2; clusterer 'hdbscan' finds its own number",
        ),
        ({"teacher": "x"}, 4, "teacher: 'x' does not exist; choose from mean, class-weighted, confidence, prototype"),
        ({"signature": "x"}, 4, "signature: 'x' does not exist"),
        ({"model": "vgg"}, 4, "model: 'vgg' does not exist"),
        (
            {"client-models": "cnn,mpl"},
            4,
            "client-models: 'mpl' does not exist (did you mean 'mlp'?); choose from mlp, mlp-200, cnn, lenet, resnet18",
        ),
        (
            {"client-models": "mlp"},
            4,
            "model: got 'cnn'; no client has it, use one that they have: mlp",
        ),
        (
            {"client-models": "resnet18,mlp,cnn"},
            2,
            "model: got 'cnn'; no client has it, use one that they have: mlp",
        ),
        *(
            ({"client-models": "cnn,mlp"} | others, 4, f"client-models: got 'mlp' beside model 'cnn'; {reason}")
            for others, reason in (
                ({"method": "fedavg"}, "method 'fedavg' needs one architecture"),
                ({"method": "local"}, "method 'local' needs one architecture"),
                ({"clusterer": "ifca"}, "clusterer 'ifca' needs one architecture"),
                (
                    {"signature": "last-layer"},
                    "signature 'last-layer' compares updates of one architecture, use initial-prototypes or subspace",
                ),
                ({"signature": "prototypes"}, "signature 'prototypes' compares updates of one architecture"),
            )
        ),
        ({"num-clusters": 5}, 4, "num-clusters: got 5; there are 4 clients"),
        ({"min-clients": 5}, 4, "min-clients: got 5; there are 4 clients"),
        ({"proxy-size": 10_000}, 4, "proxy-size: got 10000"),
        (
            {"dataset": "mnist", "data-dir": "/no/such/place"},
            4,
            "data-dir: '/no/such/place' is not a directory",
        ),
        ({"output-dir": "~nobody-here/x"}, 4, "output-dir: '~nobody-here/x' cannot be used"),
        ({"output-dir": "/tmp/" + "x" * 300}, 4, "cannot be used (File name too long)"),
        ({"output-dir": "/proc/nowhere"}, 4, "output-dir: '/proc/nowhere' cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, values: dict[str, object], clients: int, words: str
) -> None:
    config = RunConfig.from_flower({"output-dir": str(tmp_path / "r")} | values)
    with pytest.raises((ConfigError, DataError)) as caught:
        preflight(config, clients)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    fast = config.model_copy(update={"join_timeout": 0.3})
    with pytest.raises((ConfigError, DataError, FederationError)):
        execute(fast, InlineGrid(client_app, config.to_flower(), simulated_nodes(clients)))
    assert list(tmp_path.iterdir()) == []


def test_with_robust_a_client_has_an_architecture_that_the_run_names() -> None:
    """One alone with another would be its expert, and no rule compares it with others."""
    check_model(RunConfig(), "mlp")  # a node config may name any
    robust = RunConfig.from_flower({"robust": True, "client-models": "cnn,lenet"})
    for named in ("cnn", "lenet"):
        check_model(robust, named)
    with pytest.raises(ConfigError, match="model: got 'mlp'; with robust=true clients have those of .*: cnn, lenet$"):
        check_model(robust, "mlp")


def test_an_output_directory_with_a_run_in_it_is_left_alone(run) -> None:  # type: ignore[no-untyped-def]
    result = run()
    before = (result.directory / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="is not empty"):
        preflight(result.config, 6)
    assert (result.directory / "metrics.jsonl").read_text() == before


def test_an_output_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_directory(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_directory(tmp_path / "file" / "below")


def test_an_output_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for directory in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(ConfigError, match="cannot be written"):
            check_directory(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        check_directory(tmp_path)
    assert (tmp_path / "config.toml").read_text() == "mine"


def test_default_directories_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        default_directory(RunConfig()).mkdir(parents=True)
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_teaching_says_who_taught_what(run) -> None:  # type: ignore[no-untyped-def]
    """Weights of a class are shares over the experts, and every proxy sample is counted once per expert."""
    result = run(clients=6, num_clusters=3)
    with (result.directory / "teaching.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["expert"], row["class"]) for row in rows] == [(str(k), str(c)) for k in range(3) for c in range(10)]
    proxy = build_federation(result.config, 6).proxy()
    for expert in range(3):
        assert sum(int(row["samples"]) for row in rows if row["expert"] == str(expert)) == len(proxy)
    for label in range(10):
        of_class = [row for row in rows if row["class"] == str(label)]
        total = sum(float(row["weight"]) for row in of_class)
        assert total == pytest.approx(1.0 if int(of_class[0]["samples"]) else 0.0, abs=1e-3)
    assert not (run(method="fedavg").directory / "teaching.csv").exists()


def test_rounds_with_one_cluster_and_rounds_with_several_make_one_summary(run) -> None:  # type: ignore[no-untyped-def]
    result = run(clients=9, fraction_train=0.34, num_server_rounds=4, signature="prototypes")
    assert {row["num_clusters"] for row in result.rows} >= {1}
    assert result.summary["distill_steps"] == result.rows[-1]["distill_steps"]
    assert result.summary["guard_kept_average"] == sum(row["guard_kept_average"] for row in result.rows)


def test_a_run_that_fails_says_so_in_its_summary(tmp_path: Path) -> None:
    config = RunConfig(output_dir=str(tmp_path / "r"), learning_rate=1e30, model="mlp", num_server_rounds=1)
    with pytest.raises(FederationError, match="0 of 3 clients"):
        execute(config, InlineGrid(client_app, config.to_flower(), simulated_nodes(3)))
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "0 of 3 clients" in summary["error"]


def test_clients_that_disagree_on_the_number_of_partitions_are_refused(tmp_path: Path) -> None:
    config = RunConfig(output_dir=str(tmp_path / "r"), join_timeout=0.3)
    nodes = [{"partition-id": 0, "num-partitions": 2}, {"partition-id": 1, "num-partitions": 3}]
    with pytest.raises(FederationError, match="num-partitions: the clients disagree"):
        execute(config, InlineGrid(client_app, config.to_flower(), nodes))


def test_what_node_configs_say_of_architectures_is_checked_before_training(tmp_path: Path) -> None:
    nodes = [node | {"model": "mlp"} for node in simulated_nodes(3)]
    config = RunConfig(output_dir=str(tmp_path / "r"))
    with pytest.raises(ConfigError, match="^model: got 'cnn'; no client has it, use one that they have: mlp$"):
        execute(config, InlineGrid(client_app, config.to_flower(), nodes))
    config = config.model_copy(update={"method": "fedavg", "join_timeout": 0.5})
    nodes[0]["model"] = "cnn"
    with pytest.raises(FederationError, match="the first .*: client-1: model: got 'mlp' beside model 'cnn'; method"):
        execute(config, InlineGrid(client_app, config.to_flower(), nodes))
    nodes[2]["model"] = "mpl"
    config = config.model_copy(update={"method": "disue", "min_clients": 3, "join_timeout": 1.0})
    with pytest.raises(FederationError, match="the first .*: model in the node config: 'mpl' does not exist"):
        execute(config, InlineGrid(client_app, config.to_flower(), nodes))
    assert list(tmp_path.iterdir()) == []


def test_two_clients_and_default_settings_work(run) -> None:  # type: ignore[no-untyped-def]
    """What plain `flwr run .` does: two simulated nodes, although three groups are planted by default."""
    assert run(clients=2).summary["status"] == "completed"


def test_of_very_many_clients_landmarks_must_suffice_for_the_clusters() -> None:
    check_sizes(RunConfig.from_flower({"num-clusters": 250}), 10_000)
    message = (
        "num-clusters: got 251; 500 clients, the landmarks of 10000, make at most 250 clusters of min-cluster-size 2"
    )
    with pytest.raises(ConfigError, match=message):
        check_sizes(RunConfig.from_flower({"num-clusters": 251}), 10_000)
