"""`disue simulate --baseline`: another method's run, to compare with."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def test_a_baseline_is_the_run_of_its_method_with_the_same_clients_and_seed(
    tmp_path: Path, said: Callable[..., tuple[str, str]]
) -> None:
    quick = ["--engine", "inline", "--clients", "6", "--set", "seed=3", "--set", "num-server-rounds=2"]
    quick += ["--set", "model=mlp", "--set", "local-epochs=1", "--set", "distill-steps=5"]
    directory, alone = tmp_path / "run", tmp_path / "alone"
    out, _ = said("simulate", *quick, "--output", directory, "--baseline", "fedavg")
    said("simulate", *quick, "--set", "method=fedavg", "--set", "report=false", "--output", alone)
    place = directory / "baselines" / "fedavg"
    assert (place / "universal.safetensors").read_bytes() == (alone / "universal.safetensors").read_bytes()
    assert (place / "clients.csv").read_bytes() == (alone / "clients.csv").read_bytes()
    theirs, ours = (json.loads((path / "summary.json").read_text()) for path in (alone, directory))
    assert re.search(rf"fedavg: universal accuracy +│ {theirs['universal_accuracy']:.3f} ", out)
    assert re.search(rf"fedavg: expert accuracy +│ {theirs['expert_accuracy']:.3f} ", out)
    difference = 100 * (ours["expert_accuracy"] - theirs["expert_accuracy"])
    words = f"{abs(difference):.1f} points {'above' if difference > 0 else 'below'} fedavg"
    assert words in (directory / "report.html").read_text()
    row = f"| fedavg with the same clients and seed: universal model | {100 * theirs['universal_accuracy']:.1f} % |"
    assert row in (directory / "MODEL_CARD.md").read_text()


def test_baselines_that_would_be_written_elsewhere_are_refused(
    tmp_path: Path, spoilt: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (spoilt / "baselines").symlink_to(tmp_path / "elsewhere")
    said = refused("simulate", "--engine", "inline", "--resume", str(spoilt), "--baseline", "fedavg")
    assert "baselines/fedavg' leads out of the run directory" in said
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_baseline_of_fewer_rounds_is_not_compared_with_and_goes_on_with_its_run(
    tmp_path: Path, said: Callable[..., tuple[str, str]], refused: Callable[..., str]
) -> None:
    quick = ["--engine", "inline", "--set", "report=false"]
    small = ["--clients", "4", "--set", "model=mlp", "--set", "local-epochs=1", "--set", "distill-steps=2"]
    directory = tmp_path / "run"
    place = directory / "baselines" / "fedavg"
    said("simulate", *quick, *small, "--set", "num-server-rounds=1", "--output", directory, "--baseline", "fedavg")

    out, _ = said("simulate", *quick, "--resume", directory, "--set", "num-server-rounds=2")
    assert "fedavg: universal accuracy" not in out
    again = f"disue simulate --resume {directory} --baseline fedavg"
    assert f"fedavg is not compared with: it has 1 round, the run 2; to bring it up to the run: {again}\n" in out
    assert "fedavg with the same" not in (directory / "MODEL_CARD.md").read_text()
    assert "is completed; num-server-rounds above 2" in refused("simulate", *quick, "--resume", str(directory))

    rows = (directory / "metrics.jsonl").read_bytes()
    out, _ = said("simulate", *quick, "--resume", directory, "--baseline", "fedavg")
    assert "2 rounds, seed 0, engine inline, going on after round 1\n" in out
    assert json.loads((place / "summary.json").read_text())["rounds"] == 2
    assert "fedavg: universal accuracy" in out
    assert "fedavg with the same clients and seed" in (directory / "MODEL_CARD.md").read_text()
    written = (place / "universal.safetensors").stat().st_mtime_ns

    out, _ = said("simulate", *quick, "--resume", directory, "--baseline", "fedavg", "--baseline", "local")
    assert "local: expert accuracy" in out
    assert "fedavg: expert accuracy" in out
    assert (place / "universal.safetensors").stat().st_mtime_ns == written
    assert (directory / "metrics.jsonl").read_bytes() == rows

    settings = place / "config.toml"
    settings.write_text(settings.read_text().replace("seed = 0", "seed = 5"))
    assert "--baseline fedavg: seed: got 0; the run in " in refused(
        "simulate", *quick, "--resume", str(directory), "--baseline", "fedavg"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--baseline", "disue"], "--baseline: got 'disue', which is the run's own method; name another one"),
        (["--baseline", "fedavgg"], "--baseline fedavgg: method: 'fedavgg' does not exist (did you mean 'fedavg'?)"),
        (
            ["--baseline", "oracle", "--set", "scenario=dirichlet"],
            "--baseline oracle: method: 'oracle' needs planted groups",
        ),
        (
            ["--baseline", "fedavg", "--set", "client-models=mlp,cnn"],
            "--baseline fedavg: client-models: ",
        ),
    ],
)
def test_a_baseline_that_cannot_be_run_is_refused_before_anything_starts(
    words: list[str], expected: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert expected in refused("simulate", "--engine", "inline", *words, "--output", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
