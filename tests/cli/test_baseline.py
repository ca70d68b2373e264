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
    assert f"{difference:+.1f} points against fedavg" in (directory / "report.html").read_text()
    row = f"| fedavg with the same clients and seed: universal model | {100 * theirs['universal_accuracy']:.1f} % |"
    assert row in (directory / "MODEL_CARD.md").read_text()


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
