"""Real processes: `disue simulate` on Ray, and plain `flwr run .`, against the inline engine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from deployment import words_of
from resuming import simulation_on_ray

from disue.source import PACKAGES
from disue_cli.engines import ray
from disue_cli.engines.flower import run_status, started_run, tool
from disue_cli.engines.inline import run_inline
from disue_cli.engines.ray import private_superlink, run_ray
from server_app.config import RunConfig

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLIENTS = 6
SMALL = {"num-server-rounds": 3, "distill-steps": 40, "fraction-train": 0.7, "num-clusters": 2, "seed": 5}


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds_")} for row in rows]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inline") / "run"
    run_inline(RunConfig.from_flower(SMALL | {"output-dir": str(directory)}), CLIENTS)
    return directory


def flwr_run(
    app: Path, work: Path, environment: dict[str, str], run_config: dict[str, Any], num_supernodes: int
) -> tuple[str, list[str]]:
    """Run plain `flwr run` on a SuperLink that is there; return the run's status and the printed lines."""
    overrides = work / "overrides.toml"
    overrides.write_text(tomli_w.dumps(run_config))
    command = [tool("flwr"), "run", str(app), "--stream", "--run-config", str(overrides)]
    command += ["--federation-config", f"num-supernodes={num_supernodes} client-resources-num-cpus=1"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=600)
    log = (done.stdout + done.stderr).splitlines()
    return run_status(started_run(log), ray.CONNECTION, environment, work), log


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Where a SuperLink was started, and the environment in which `flwr` finds it."""
    work = tmp_path_factory.mktemp("superlink")
    with private_superlink(work) as environment:
        yield work, environment


@pytest.fixture
def place() -> Iterator[Path]:
    """Where Ray keeps its files and notes which cluster was the last: a short path, for its sockets."""
    directory = tempfile.mkdtemp(prefix="ray")
    yield Path(directory)
    shutil.rmtree(directory, ignore_errors=True)


def test_the_two_engines_give_equal_metrics_and_equal_models(
    inline: Path, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower is not asked how it went: the app said that it came to its end.

    And a Ray cluster that was left without a word is not waited for.
    """
    monkeypatch.delattr(ray, "run_status")
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    (place / "ray_current_cluster").write_text("127.0.0.1:9")
    seen: list[dict[str, Any]] = []
    config = RunConfig.from_flower(SMALL | {"output-dir": str(tmp_path / "run")})
    summary = run_ray(config, CLIENTS, 0.0, seen.append)
    assert summary["status"] == "completed"
    assert [row["round"] for row in seen] == [1, 2, 3]
    assert rows_of(tmp_path / "run") == rows_of(inline)
    for name in ("universal.safetensors", "experts/expert-0.safetensors", "clients.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (inline / name).read_bytes()


def is_of_ray(process: psutil.Process, port: str) -> bool:
    words = words_of(process)
    return any("/ray/" in word for word in words) and any(re.search(rf"[:=]{port}\b", word) for word in words)


@contextmanager
def ray_cluster(nodes: int, place: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Start a Ray cluster of so many nodes, with one CPU each; yield its address and the nodes' raylets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, before = f"127.0.0.1:{port}", set(psutil.pids())
    usual = ["--num-cpus=1", "--disable-usage-stats", "--object-store-memory=100000000"]

    def started() -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if p.pid not in before and is_of_ray(p, str(port))]

    try:
        for first in (f"--head --port={port} --include-dashboard=false", *[f"--address={address}"] * (nodes - 1)):
            command = [tool("ray"), "start", *first.split(), *usual]
            environment = os.environ | {"RAY_TMPDIR": str(place)}
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        yield address, [process for process in started() if any("raylet/raylet" in word for word in words_of(process))]
    finally:
        left = started()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=20)


def test_several_clients_on_a_node_and_sums_are_the_same_on_all_nodes_of_a_ray_cluster(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What clients keep between the messages of a round, Ray keeps for them."""
    values = SMALL | {"privacy": "secure", "num-server-rounds": 2, "fraction-train": 1.0}
    inline = tmp_path / "inline"
    run_inline(RunConfig.from_flower(values | {"output-dir": str(inline)}), CLIENTS)
    with ray_cluster(2, place) as (address, raylets):
        assert len(raylets) == 2
        at_work: set[int] = set()

        def look(row: dict[str, Any]) -> None:
            for raylet in raylets:
                if any("ClientAppActor" in " ".join(words_of(worker)) for worker in raylet.children()):
                    at_work.add(raylet.pid)

        monkeypatch.setenv("RAY_ADDRESS", address)
        config = RunConfig.from_flower(values | {"clients-per-node": 3, "output-dir": str(tmp_path / "run")})
        run_ray(config, CLIENTS // 3, 0.0, look)
        assert at_work == {raylet.pid for raylet in raylets}
        assert all(raylet.is_running() for raylet in raylets)  # the cluster is another's
    assert rows_of(tmp_path / "run") == rows_of(inline)
    assert (tmp_path / "run" / "clients.csv").read_bytes() == (inline / "clients.csv").read_bytes()


@pytest.mark.parametrize(("method", "per_node"), [("scaffold", 1), ("fedrep", 3)])
def test_what_clients_keep_from_round_to_round_is_the_same_in_ray(tmp_path: Path, method: str, per_node: int) -> None:
    """And it matters: federated averaging, in which they keep nothing, comes to something else."""
    values = SMALL | {"momentum": 0.0, "method": method}
    for name, other in ((method, {}), ("fedavg", {"method": "fedavg"})):
        run_inline(RunConfig.from_flower(values | other | {"output-dir": str(tmp_path / name)}), CLIENTS)
    config = RunConfig.from_flower(values | {"clients-per-node": per_node, "output-dir": str(tmp_path / "run")})
    run_ray(config, CLIENTS // per_node, 0.0, lambda row: None)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / method)
    universal = {name: (tmp_path / name / "universal.safetensors").read_bytes() for name in ("run", method, "fedavg")}
    assert universal["run"] == universal[method] != universal["fedavg"]


def test_plain_flwr_run_gives_the_same(inline: Path, tmp_path: Path, superlink: tuple[Path, dict[str, str]]) -> None:
    status, log = flwr_run(ROOT, *superlink, SMALL | {"output-dir": str(tmp_path / "run")}, CLIENTS)
    assert status == "finished:completed", "\n".join(log[-30:])
    assert rows_of(tmp_path / "run") == rows_of(inline)


def test_a_bad_value_fails_the_run_with_the_line_in_the_log(
    tmp_path: Path, superlink: tuple[Path, dict[str, str]]
) -> None:
    values = {"scenario": "rotations", "output-dir": str(tmp_path / "run")}
    status, log = flwr_run(ROOT, *superlink, values, 2)
    assert status == "finished:failed"
    assert any("scenario: 'rotations' does not exist (did you mean 'rotation'?)" in line for line in log)
    assert not (tmp_path / "run").exists()


def test_other_code_in_the_starting_directory_is_noticed(tmp_path: Path) -> None:
    """Ray actors prefer the directory that the SuperLink was started from to the app bundle; the hash tells."""
    link = tmp_path / "link"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, link / package)
    (link / "client_app" / "training.py").open("a").write("\nANOTHER_VERSION = True\n")
    values = SMALL | {"join-timeout": 5.0, "output-dir": str(tmp_path / "run")}
    with private_superlink(link) as environment:
        status, log = flwr_run(ROOT, link, environment, values, 2)
    assert status == "finished:failed"
    ours = [line for line in log if line.startswith("disue.errors.FederationError: min-clients: 0 clients answered")]
    assert "this client runs other source code" in ours[0]


def test_the_readme_job(tmp_path: Path) -> None:
    """The README's main job: `disue simulate` with nothing else, twelve clients in three planted groups on Ray.

    Behind a proxy that answers nobody, and with a directory for temporary files whose name is too long for a socket.
    """
    command = [str(Path(sys.executable).parent / "disue"), "simulate"]
    long = tmp_path / ("x" * 100)
    long.mkdir()
    around = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9") | {"TMPDIR": str(long)}
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | around, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(next((tmp_path / "runs").glob("*/summary.json")).read_text())
    assert summary["clients"] == 12
    assert summary["ari"] == 1.0
    assert "round 10/10" in done.stdout
    assert f"artefacts: {next((tmp_path / 'runs').iterdir())}" in done.stdout.replace("\n", "")


def test_a_simulation_that_is_asked_to_end_leaves_nothing_running(tmp_path: Path) -> None:
    """A first signal ends it after its round, and all is well; `test_resume.py` sends a second one."""
    directory = tmp_path / "run"
    with simulation_on_ray(directory, "--set", "num-server-rounds=1000", rows=1) as (process, family):
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=180)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert process.returncode == 0
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"
    rows = len(rows_of(directory))
    assert f"stopped after round {rows} of 1000; to go on: disue simulate --engine ray --resume " in out
