"""The console command in a real process: output, files, exit status."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Disue
from PIL import Image

from disue.data import load_dataset
from disue_cli.main import main

README = Path(__file__).parents[2] / "README.md"
QUICK = ["model=mlp", "num-server-rounds=2", "distill-steps=10", "proxy-samples=0", "calibration-epochs=2"]
QUICK = [word for setting in QUICK for word in ("--set", setting)]


def disue(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Return how the command ends in a process of its own."""
    process = Disue(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_an_inline_run_prints_rounds_table_and_place(tmp_path: Path) -> None:
    done = disue("simulate", "--engine", "inline", "--clients", "6", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "round 1/2",
        "round 2/2",
        "universal accuracy",
        "average accuracy",
        "untaught average of this run's client",
        "expert accuracy",
        "clusters",
        "ari",
    ):
        assert word in done.stdout
    place = Path(done.stdout.split("artefacts: ")[1].strip())
    assert place.parent == tmp_path / "runs"
    assert place.name.endswith("-disue")
    assert json.loads((place / "summary.json").read_text())["status"] == "completed"


def test_the_readmes_run_of_small_and_large_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said) -> None:  # type: ignore[no-untyped-def]
    (command,) = re.findall(r"^disue (.*client-models.*)$", README.read_text(), re.MULTILINE)
    quick = ["--set", "num-server-rounds=2", "--set", "distill-steps=10", "--output", "out"]
    monkeypatch.chdir(tmp_path)
    assert "universal accuracy, mlp" in said(*command.split(), *quick)[0]
    for name in ("universal", "universal-mlp", "experts/expert-0", "experts/expert-0-mlp"):
        assert (tmp_path / "out" / f"{name}.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "alhpa=1"], "alhpa: no such run config key (did you mean 'alpha'?)"),
        (["--set", "alpha=0"], "alpha: got 0; input should be greater than or equal to"),
        (["--set", "method=nope"], "method: 'nope' does not exist; choose from"),
        (["--set", "alpha"], "--set: got 'alpha'; expected key=value"),
        (["--clients", "3", "--set", "num-clusters=4"], "num-clusters: got 4; there are 3 clients"),
        (["--clients", "1"], "min-clients: got 2; there are 1 clients"),
        (["--set", "proxy-size=5000"], "proxy-size: got 5000"),
        (
            ["--set", "dataset=mnist", "--set", "data-dir=/no/such/place"],
            "data-dir: '/no/such/place' is not a directory",
        ),
        (["--output", "/proc/nowhere"], "output-dir: '/proc/nowhere' cannot be"),
        (["--gpus-per-client", "nan"], "--gpus-per-client: got nan"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for engine in ("inline", "ray"):
        assert words in refused("simulate", "--engine", engine, *arguments)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "DIR", "--clients", "7"], "--clients: got 7; the run in 'DIR' has 6"),
        (
            ["--resume", "DIR", "--output", "other"],
            "output-dir: got 'other'; a run goes on in its own directory",
        ),
        (["--resume", "DIR", "--set", "alpha=0.1"], "alpha: got 0.1; the run in 'DIR' goes on with alpha=0.7 only"),
        (["--set", "resume-from=DIR", "--set", "seed=1"], "seed: got 1; the run in 'DIR' goes on with seed=0 only"),
        (["--resume", "nowhere"], "resume-from: there is no run in '"),
        (["--resume", "~no-such-user/x"], "resume-from: '~no-such-user/x' cannot be used"),
    ],
)
def test_what_cannot_be_resumed_is_one_line_and_status_2(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(run_directory.parent)
    before = (run_directory / "config.toml").read_text()
    for engine in ("inline", "ray"):
        given = [word.replace("DIR", str(run_directory)) for word in arguments]
        assert words.replace("DIR", str(run_directory)) in refused("simulate", "--engine", engine, *given)
    assert [path.name for path in run_directory.iterdir()] == ["config.toml"]
    assert (run_directory / "config.toml").read_text() == before


def test_a_run_on_real_machines_is_not_resumed_as_a_simulation(run_directory: Path, refused) -> None:
    config = run_directory / "config.toml"
    config.write_text(config.read_text().replace("partitions = 6", "partitions = 0"))
    assert "is no simulation; use disue run" in refused("simulate", "--resume", str(run_directory))


def test_a_run_is_resumed_from_anywhere_with_as_many_clients_as_it_had(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(run_directory.parent)
    out, _ = said("simulate", "--engine", "inline", "--resume", run_directory.name)
    assert "fedavg on digits, scenario label-groups: 6 clients" in out
    assert f"artefacts: {run_directory}" in out
    assert json.loads((run_directory / "summary.json").read_text())["clients"] == 6


@pytest.fixture
def clinics(tmp_path: Path) -> Path:
    """A folder of the data of three clients."""
    rng = np.random.default_rng(0)
    (tmp_path / "clinics").mkdir()
    for name in ("north", "south", "west"):
        x, y = rng.integers(0, 256, (12, 8, 8), dtype=np.uint8), np.arange(12) % 3
        np.savez(tmp_path / "clinics" / f"{name}.npz", x=x, y=y)
    return tmp_path


def test_a_rehearsal_has_the_clients_whose_data_are_there_and_goes_on_with_them(
    clinics: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(clinics)
    keys = ["--set", "input-shape=1x8x8", "--set", "method=fedavg", *QUICK, "--output", "out"]
    out, _ = said("simulate", "--engine", "inline", "--data", "clinics", *keys)
    assert "fedavg on own, scenario own-data: 3 clients, 2 rounds" in out
    settings = tomllib.loads((clinics / "out" / "config.toml").read_text())["run"]
    assert settings["own-data"] == str(clinics / "clinics")
    (clinics / "clinics").rename(clinics / "moved")
    again = ["--resume", "out", "--data", "moved", "--set", "num-server-rounds=3"]
    out, _ = said("simulate", "--engine", "inline", *again)
    assert "3 clients, 3 rounds, seed 0, engine inline, going on after round 2" in out
    assert json.loads((clinics / "out" / "summary.json").read_text())["clients"] == 3


def test_a_pool_of_images_is_divided_by_the_scenario(clinics: Path, monkeypatch: pytest.MonkeyPatch, said) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(clinics)
    digits = load_dataset("digits")
    np.savez("pool.npz", x=digits.train.x.numpy() * 15, y=digits.train.y.numpy())
    for i, image in enumerate(digits.train.x[:200, 0].numpy() * 15):
        place = clinics / "pool" / str(int(digits.train.y[i]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i}.png")
    for pool, clients in (("pool.npz", 6), ("pool", 3)):
        keys = ["--set", "input-shape=1x8x8", "--clients", clients, *QUICK, "--output", f"{pool}-run"]
        out, _ = said("simulate", "--engine", "inline", "--data", pool, *keys)
        assert f"disue on path:{pool}, scenario label-groups: {clients} clients" in out.replace(f"{clinics}/", "")
        summary = json.loads((clinics / f"{pool}-run" / "summary.json").read_text())
        assert summary["universal_accuracy"] > 0.15
        assert summary["ari"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "clinics", "--clients", "4"], "own-data: 'clinics' has 3 clients' data; got 4, use 3"),
        (["--data", "nowhere"], "own-data: 'nowhere' cannot be read (No such file or directory)"),
        (["--data", "clinics", "--set", "dataset=digits"], "dataset: got 'digits' beside --data, which is dataset=own"),
        (["--data", "clinics/north.npz", "--clients", "9"], "has 9 training examples for 9 clients; use fewer clients"),
        (["--data", "clinics/east.npz"], "dataset: 'clinics/east.npz' is neither a folder nor an .npz file"),
        (["--set", "dataset=own"], "a simulation has none, unless own-data names a folder of them"),
        (["--data", "clinics", "--set", "clients-per-node=2"], "clients-per-node: got 2; 3 clients cannot fill"),
    ],
)
def test_a_rehearsal_that_cannot_be_is_one_line(
    clinics: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], words: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(clinics)
    quick = ["--set", "method=fedavg", "--set", "input-shape=1x8x8"]
    assert words in refused("simulate", "--engine", "inline", *quick, *arguments).replace(f"{clinics}/", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("arguments", [["--set", "device=cuda"], ["--gpus-per-client", "0.5"]])
def test_a_gpu_that_is_not_there_is_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["disue", "simulate", "--engine", "inline", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_a_relative_data_directory_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    said("simulate", "--engine", "inline", *QUICK, "--set", "data-dir=data", "--output", "out")
    settings = tomllib.loads((tmp_path / "out" / "config.toml").read_text())["run"]
    assert settings["data-dir"] == str(tmp_path / "data")
    assert settings["output-dir"] == str(tmp_path / "out")


def test_a_signal_ends_a_simulation_after_its_round_with_status_0(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    settings = ["--set", "model=mlp", "--set", "num-server-rounds=1000", "--set", "distill-steps=1"]
    process = Disue("simulate", "--engine", "inline", *settings, "--output", str(directory), cwd=tmp_path)
    assert any(line.startswith("round    2/1000") for line in process.stdout)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    rounds = (directory / "metrics.jsonl").read_text().count("\n")
    again = f"to go on: disue simulate --engine inline --resume '{directory}'"
    assert out.splitlines()[-1] == f"stopped after round {rounds} of 1000; {again}"
    assert "disue: the run ends after this round; a second signal ends it at once\n" in err
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"


IN_LITTLE_SPACE = """
mount -t tmpfs -o size=800k none "$1" && cd "$1" && "$2" -c "from disue_cli.main import main; main()" simulate \\
    --engine inline --clients 4 --set model=mlp --set num-server-rounds=3 \\
    --set min-cluster-size=1 --set distill-steps=5 --output run
status=$?
cp -r run "$3" && exit $status
"""


@pytest.mark.e2e
def test_a_full_disk_is_one_line_with_status_1_and_leaves_what_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said
) -> None:  # type: ignore[no-untyped-def]
    """Here there is room for one checkpoint; tests/server_app/test_disk_full.py tries every moment."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a file system")
    (tmp_path / "small").mkdir()
    command = [*alone, "sh", "-c", IN_LITTLE_SPACE, "sh", tmp_path / "small", sys.executable, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("disue: ")]
    assert len(ours) == 1
    assert re.search(
        r"/round-000002-\w+.safetensors' cannot be written \(No space left on device\); make room there$", ours[0]
    )
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.part"))
    monkeypatch.chdir(tmp_path)
    said("simulate", "--engine", "inline", "--resume", "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.e2e
def test_bad_input_shows_no_traceback_in_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from disue_cli.main import main; main()", "simulate", "--set", "num-clusters=40"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "disue: num-clusters: got 40; there are 12 clients, use 0 to 12\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--engine", "dask"], "dask"),
        (["simulate", "--clients", "0"], "0"),
        (["simulat"], "simulat"),
    ],
)
def test_bad_options_are_status_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = disue(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_fails_is_status_1(tmp_path: Path) -> None:
    done = disue(
        "simulate",
        "--engine",
        "inline",
        "--clients",
        "3",
        *QUICK,
        "--set",
        "learning-rate=1e30",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "min-success-fraction: 0 of 3 clients" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ignored", [True, False])
def test_an_ignored_hangup_stays_ignored(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `nohup`."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["disue", "--version"])
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        with pytest.raises(SystemExit):
            main()
        assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == ignored
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["--version"]])
def test_help_has_examples_and_does_not_load_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from disue_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules, 'heavy imports'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "simulate" in arguments:
        assert "disue simulate --engine inline" in done.stdout
