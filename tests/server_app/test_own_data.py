"""Whole runs of clients with data of their own, in this process: the real ServerApp and ClientApp."""

import csv
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.superlink.grid.http_grid import HttpGrid
from PIL import Image
from safetensors import safe_open
from tests_support import ARTEFACTS_OF_TWO, ChangingGrid, files_of

from client_app.app import app as client_app
from disue.data import load_dataset
from disue.data.own import open_own
from disue.errors import ConfigError, DataError, FederationError
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig
from server_app.resume import resumed_config
from server_app.run import check_timeout, execute, preflight

DIGITS = load_dataset("digits").train
SETTINGS = {
    "dataset": "own",
    "input-shape": "1x8x8",
    "model": "mlp",
    "num-server-rounds": 3,
    "local-epochs": 1,
    "distill-steps": 10,
    "proxy": "dataset:digits",
    "join-timeout": 1.0,
    "num-clusters": 2,
    "min-cluster-size": 1,
}


def digits(classes: Iterable[int], start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (uint8, up to 240) and labels of so many digits of these classes."""
    y = DIGITS.y.numpy()
    chosen = np.flatnonzero(np.isin(y, list(classes)))[start : start + count]
    return (DIGITS.x.numpy()[chosen, 0] * 15).astype(np.uint8), y[chosen]


def write_folder(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{i:04}.png")
    return root


@pytest.fixture
def nodes(tmp_path: Path) -> list[dict[str, object]]:
    """Four clients: folders and files, grey and colour, another size, floats, missing classes."""
    root = tmp_path / "data"
    x, y = digits(range(5), 0, 60)
    write_folder(root / "a", x, y)
    x, y = digits(range(5), 60, 60)
    colour = np.repeat(np.repeat(np.repeat(x[..., None], 3, axis=3), 2, axis=1), 2, axis=2)
    write_folder(root / "b", colour, y)
    x, y = digits(range(5, 10), 0, 60)
    np.savez(root / "c.npz", x=(x / 255.0).astype(np.float32), y=y)
    x, y = digits(range(5, 9), 60, 60)
    np.savez(root / "d.npz", x=x[:, None], y=y - 5, classes=np.array(["5", "6", "7", "8"]))
    places = {"a": "a", "b": "b", "c": "c.npz", "d": "d.npz"}
    return [{"name": f"hospital-{name}", "data-path": str(root / place)} for name, place in places.items()]


class Watched(ChangingGrid):
    """Makes nodes silent, and lets them speak again, when a round's training is about to begin."""

    def __init__(self, config: RunConfig, nodes: list[dict[str, object]]) -> None:
        super().__init__(client_app, config.to_flower(), nodes)
        self.plan: dict[int, set[int]] = {}
        self.rounds_of: dict[int, list[int]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train":
                number = int(message.metadata.group_id)
                self.silent = self.plan.get(number, self.silent)
                self.rounds_of.setdefault(message.metadata.dst_node_id, []).append(number)
        return super().push_messages(messages)


def make_config(directory: Path, **changes: Any) -> RunConfig:
    values = SETTINGS | {key.replace("_", "-"): value for key, value in changes.items()}
    return RunConfig.from_flower(values | {"output-dir": str(directory)})


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def table(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "clients.csv").open(newline="") as file:
        return {row["client"]: row for row in csv.DictReader(file)}


def held_out_by(config: RunConfig, nodes: list[dict[str, object]]) -> dict[str, int]:
    """Return how many examples each client holds out."""
    sizes = {}
    for node in nodes:
        name, path = str(node["name"]), str(node["data-path"])
        sizes[name] = len(open_own(path, config.shape, config.test_fraction, config.seed, name).test)
    return sizes


def test_four_clients_with_different_data_give_what_a_simulation_gives(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=6, learning_rate=0.1, local_epochs=4)
    summary = execute(config, Watched(config, nodes))
    assert files_of(tmp_path / "r") == ARTEFACTS_OF_TWO
    assert (summary["status"], summary["scenario"], summary["dataset"]) == ("completed", "own-data", "own")
    assert summary["average_accuracy"] is None
    assert summary["ari"] is None
    assert summary["clients_failed"] == 0
    settings = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert settings["task"]["classes"] == list("0123456789")
    assert settings["task"]["input-shape"] == "1x8x8"
    assert len(settings["task"]["mean"]) == len(settings["task"]["std"]) == 1
    clients = table(tmp_path / "r")
    sizes = held_out_by(config, nodes)
    assert {name: int(row["examples"]) for name, row in clients.items()} == {name: 60 - sizes[name] for name in sizes}
    assert [row["group"] for row in clients.values()] == [""] * 4
    a, b, c, d = (clients[f"hospital-{name}"]["cluster"] for name in "abcd")
    assert a == b != c == d
    assert summary["expert_accuracy"] > 0.6
    with safe_open(tmp_path / "r" / "universal.safetensors", "pt") as file:
        assert file.get_tensor("head.weight").shape[0] == 10


def test_universal_accuracy_is_the_mean_over_the_clients_own_test_examples(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    x, y = digits(range(3), 200, 30)
    np.savez(tmp_path / "data" / "d.npz", x=x, y=y)  # smaller than the others
    config = make_config(tmp_path / "r", num_server_rounds=1, method="fedavg", proxy="holdout")
    summary = execute(config, Watched(config, nodes))
    clients = table(tmp_path / "r")
    sizes = held_out_by(config, nodes)
    hits = sum(float(row["universal_accuracy"]) * sizes[name] for name, row in clients.items())
    assert summary["universal_accuracy"] == pytest.approx(hits / sum(sizes.values()), abs=1e-4)


def test_the_same_seed_gives_the_same_run(tmp_path: Path, nodes: list[dict[str, object]]) -> None:
    results = []
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        config = make_config(tmp_path / name, seed=seed, num_server_rounds=1)
        execute(config, Watched(config, nodes))
        results.append((tmp_path / name / "universal.safetensors").read_bytes())
    assert results[0] == results[1] != results[2]


def test_a_client_whose_data_cannot_be_used_says_why_once_and_stops_nobody(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    broken = tmp_path / "data" / "a" / "0" / "0000.png"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"not an image")
    config = make_config(tmp_path / "r")
    execute(config, Watched(config, nodes))
    said = [line for line in messages if "cannot take part" in line]
    assert said == ["node 1000 cannot take part: DataError: hospital-a: '0/0000.png' cannot be read (not an image)"]
    assert [row["clients_ok"] for row in rows_of(tmp_path / "r")] == [3, 3, 3]
    assert list(table(tmp_path / "r")) == ["hospital-b", "hospital-c", "hospital-d"]
    assert not [line for line in messages if str(tmp_path / "data") in line]


def test_data_that_are_mended_let_a_client_in(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    broken = tmp_path / "data" / "a" / "0" / "x.png"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"not an image")
    config = make_config(tmp_path / "r")

    def mend(row: dict[str, Any]) -> None:
        broken.unlink(missing_ok=True)

    execute(config, Watched(config, nodes), mend)
    assert [row["clients_ok"] for row in rows_of(tmp_path / "r")] == [3, 4, 4]


def test_a_client_that_is_silent_for_a_round_is_left_out_and_comes_back_into_its_cluster(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=5)
    grid = Watched(config, nodes)
    grid.plan = {2: {1001}, 3: {1001}, 4: set()}
    execute(config, grid)
    assert grid.rounds_of[1001] == [1, 2, 5]
    assert messages.count("client hospital-b did not answer; going on without it") == 1
    cluster = table(tmp_path / "r")["hospital-b"]["cluster"]
    assert cluster == table(tmp_path / "r")["hospital-a"]["cluster"]
    assert messages.count(f"client hospital-b is back, in cluster {cluster}") == 1
    rows = rows_of(tmp_path / "r")
    assert [row["clients_ok"] for row in rows] == [4, 3, 3, 3, 4]
    assert [row["clients_failed"] for row in rows] == [0, 1, 1, 1, 0]
    assert {row["churn"] for row in rows} == {0.0}


def test_too_many_that_are_left_out_end_the_run(tmp_path: Path, nodes: list[dict[str, object]]) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=4, min_success_fraction=0.6)
    grid = Watched(config, nodes)
    grid.plan = {2: {1001}, 3: {1001, 1002}}
    with pytest.raises(FederationError, match="min-success-fraction: 2 of 4 clients sent a usable update in round 3"):
        execute(config, grid)


def test_a_client_that_restarts_as_another_node_is_in_its_cluster_again(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=4)
    grid = Watched(config, nodes)

    def restart(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            grid.forget(1003)
        if row["round"] == 2:
            grid.contexts[grid.add_node(nodes[3])].run_config.update(config.to_flower())

    execute(config, grid, restart)
    assert "client hospital-d is no longer connected; going on without it" in messages
    assert f"client hospital-d is back, in cluster {table(tmp_path / 'r')['hospital-d']['cluster']}" in messages
    assert [row["clients_ok"] for row in rows_of(tmp_path / "r")] == [4, 3, 4, 4]


def test_a_latecomer_that_trains_and_is_gone_before_the_round_is_over_counts(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    config = make_config(tmp_path / "r", num_server_rounds=3)
    grid = Watched(config, nodes[:3])

    def join(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            late = grid.contexts[grid.add_node(nodes[3])]
            late.run_config.update(config.to_flower())
            push = grid.push_messages

            def silent_when_it_is_tested(messages: Iterable[Message]) -> list[str]:
                messages = list(messages)
                if any(message.metadata.message_type == "evaluate" for message in messages):
                    grid.silent = {late.node_id}
                return push(messages)

            grid.push_messages = silent_when_it_is_tested  # type: ignore[method-assign]

    execute(config, grid, join)
    assert [row["clients_ok"] for row in rows_of(tmp_path / "r")] == [3, 4, 3]
    assert table(tmp_path / "r")["hospital-d"]["cluster"]


def test_latecomers_with_other_classes_are_refused_and_named_classes_let_them_in(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    x, y = digits([9], 0, 20)
    write_folder(tmp_path / "data" / "late", x, y + 90)
    late: dict[str, object] = {"name": "late", "data-path": str(tmp_path / "data" / "late")}
    for name, classes, ok in (("r", "", [4, 4, 4]), ("s", "0,1,2,3,4,5,6,7,8,9,99", [4, 5, 5])):
        config = make_config(tmp_path / name, classes=classes)
        grid = Watched(config, nodes)

        def join(row: dict[str, Any], grid: Watched = grid, config: RunConfig = config) -> None:
            if row["round"] == 1:
                grid.contexts[grid.add_node(late)].run_config.update(config.to_flower())

        execute(config, grid, join)
        assert [row["clients_ok"] for row in rows_of(tmp_path / name)] == ok
    refused = [line for line in messages if "cannot take part" in line]
    assert len(refused) == 1
    assert "late: classes that this run does not have: '99'; it has '0', '1'" in refused[0]


def test_small_and_large_models_are_scored_by_their_own_clients(tmp_path: Path, nodes: list[dict[str, object]]) -> None:
    nodes[1]["model"] = nodes[2]["model"] = "cnn"
    config = make_config(tmp_path / "r", num_server_rounds=1)
    summary = execute(config, Watched(config, nodes))
    clients = table(tmp_path / "r")
    sizes = held_out_by(config, nodes)
    for key, names in (("universal_accuracy", "ad"), ("universal_accuracy_cnn", "bc")):
        own = [(float(clients[f"hospital-{name}"]["universal_accuracy"]), sizes[f"hospital-{name}"]) for name in names]
        mean = sum(accuracy * size for accuracy, size in own) / sum(size for _, size in own)
        assert summary[key] == pytest.approx(mean, abs=1e-4)


def test_the_proxy_set_comes_from_a_folder_of_the_server(tmp_path: Path, nodes: list[dict[str, object]]) -> None:
    x, y = digits(range(10), 500, 40)
    write_folder(tmp_path / "proxy", x, y)
    config = make_config(tmp_path / "r", num_server_rounds=1, proxy=f"path:{tmp_path / 'proxy'}")
    assert execute(config, Watched(config, nodes))["status"] == "completed"
    config = make_config(tmp_path / "g", num_server_rounds=1, proxy="generator", generator_steps=3)
    assert execute(config, Watched(config, nodes))["status"] == "completed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"proxy": "holdout"},
            "proxy: got 'holdout'; with dataset 'own' the server has no data",
        ),
        ({"proxy": "path:/no/where"}, "proxy: '/no/where' is not a directory"),
        ({"proxy": "dataset:own"}, "dataset: got 'own'; that is what clients on real machines have"),
        ({"client_models": "mlp,cnn"}, "client-models: got 'mlp,cnn'; with dataset 'own' leave it empty"),
        ({"method": "oracle"}, "method: 'oracle' needs planted groups and scenario 'own-data' has none"),
        ({"classes": "1,2"}, "min-clients: 0 clients answered and 2 are needed"),
        ({"min_clients": 5}, "min-clients: 4 clients joined within 1 s and 5 are needed"),
    ],
)
def test_what_does_not_go_with_own_data_is_one_line(
    tmp_path: Path, nodes: list[dict[str, object]], changes: dict[str, Any], words: str
) -> None:
    config = make_config(tmp_path / "r", **changes)
    with pytest.raises((ConfigError, DataError, FederationError)) as caught:
        execute(config, Watched(config, nodes))
    assert words in str(caught.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("input-shape", value) for value in ("28x28", "2x28x28", "1x3x28", "1x28x0", "1x28", "axbxc", "1x28x99999")),
        *(("classes", value) for value in ("a", "a,,b", "a,b,a", ",")),
        *(("test-fraction", value) for value in (0.0, 1.0)),
    ],
)
def test_bad_values_of_the_keys_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: got "):
        RunConfig.from_flower({key: value})


def test_a_simulation_has_no_own_data(tmp_path: Path) -> None:
    for proxy in ("holdout", "dataset:digits"):
        with pytest.raises(DataError, match="^dataset: got 'own'; .* a simulation has none, unless own-data names"):
            preflight(make_config(tmp_path / "r", proxy=proxy), 4)


def test_a_simulation_of_own_data_is_what_comes_of_machines_of_their_own(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    """The rehearsal of a deployment: the same bits."""
    for name in "abcd":
        (tmp_path / "data" / f"hospital-{name}").symlink_to(tmp_path / "data" / name) if name in "ab" else (
            tmp_path / "data" / f"{name}.npz"
        ).rename(tmp_path / "data" / f"hospital-{name}.npz")
    for node in nodes[2:]:
        node["data-path"] = str(tmp_path / "data" / f"{node['name']}.npz")
    execute(make_config(tmp_path / "machines"), Watched(make_config(tmp_path / "machines"), nodes))
    for name in "ab":
        (tmp_path / "data" / f"hospital-{name}").unlink()
        (tmp_path / "data" / name).rename(tmp_path / "data" / f"hospital-{name}")
    config = make_config(tmp_path / "rehearsal", own_data=str(tmp_path / "data"))
    preflight(config, 4)
    summary = run_inline(config, 4)
    assert summary["scenario"] == "own-data"
    universals = [(tmp_path / run / "universal.safetensors").read_bytes() for run in ("machines", "rehearsal")]
    assert universals[0] == universals[1]
    assert table(tmp_path / "machines") == table(tmp_path / "rehearsal")


def test_a_rehearsal_has_as_many_clients_as_there_are_data(tmp_path: Path, nodes: list[dict[str, object]]) -> None:
    there = str(tmp_path / "data")
    with pytest.raises(ConfigError, match="^own-data: '.*/data' has 4 clients' data; got 5, use 4$"):
        preflight(make_config(tmp_path / "r", own_data=there), 5)
    with pytest.raises(ConfigError, match="^own-data: got '.*/data'; the dataset is 'digits', use dataset=own$"):
        preflight(make_config(tmp_path / "r", own_data=there, dataset="digits"), 4)
    with pytest.raises(
        FederationError, match="'.*/data' has 4 clients' data; the simulation has 5 clients, use as many"
    ):
        run_inline(make_config(tmp_path / "r", own_data=there), 5)


def test_a_timeout_in_which_no_reply_can_come_is_refused_where_there_is_a_network() -> None:
    network, here = HttpGrid.__new__(HttpGrid), Watched(RunConfig(), [])
    with pytest.raises(ConfigError, match="^round-timeout: got 2; a reply takes some seconds .* use at least 10$"):
        check_timeout(RunConfig(round_timeout=2.0), network)
    check_timeout(RunConfig(round_timeout=10.0), network)
    check_timeout(RunConfig(round_timeout=2.0), here)


def test_nodes_and_runs_that_do_not_go_together_say_so(
    tmp_path: Path, nodes: list[dict[str, object]], messages: list[str]
) -> None:
    nodes[0] = {"partition-id": 0, "num-partitions": 2}
    config = make_config(tmp_path / "r", num_server_rounds=1)
    execute(config, Watched(config, nodes))
    assert any("client-0: dataset 'own' needs a name and a data-path" in line for line in messages)
    config = make_config(tmp_path / "s", dataset="digits", proxy="holdout", min_clients=1, num_clusters=0)
    nodes[0]["num-partitions"] = 1
    execute(config, Watched(config, nodes))
    assert any("hospital-b: the node has data of its own" in line for line in messages)


def test_an_interrupted_run_goes_on_with_what_its_clients_agreed_on(
    tmp_path: Path, nodes: list[dict[str, object]]
) -> None:
    """One of them alone has some of the classes, and its pixels are in the means; it is missing at first."""

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt

    config = make_config(tmp_path / "r", join_timeout=0.5)
    with pytest.raises(KeyboardInterrupt):
        execute(config, Watched(config, nodes), stop)
    before = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    config = resumed_config({"resume-from": str(tmp_path / "r"), "num-server-rounds": 4})
    grid = Watched(config, nodes)
    late = grid.forget(1002)

    def bring_back(row: dict[str, Any]) -> None:
        if row["round"] == 2:
            grid.bring_back(late)

    assert execute(config, grid, bring_back)["status"] == "completed"
    after = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert (after["task"], after["federation"]) == (before["task"], before["federation"])
    assert after["task"]["classes"] == list("0123456789")
    assert [(row["clients_ok"], row["clients_failed"]) for row in rows_of(tmp_path / "r")] == [
        (4, 0),
        (3, 1),
        (4, 0),
        (4, 0),
    ]
    assert {name: row["cluster"] for name, row in table(tmp_path / "r").items()}.keys() == {n["name"] for n in nodes}
