"""`disue run` where there is nothing to run on; `tests/e2e/test_deploy_*.py` have real SuperLinks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disue.errors import FederationError
from disue_cli.commands import run
from server_app.config import RunConfig


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere"], 2, "CONNECTION: SuperLink connection 'nowhere' not found in the Flower configuration file"),
        (["closed"], 1, "the SuperLink of connection 'closed' did not take the run: "),
        (["closed", "--set", "alhpa=1"], 2, "alhpa: no such run config key (did you mean 'alpha'?)"),
        (["closed", "--set", "method=nope"], 2, "method: 'nope' does not exist; choose from"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, arguments: list[str], status: int, words: str
) -> None:
    (tmp_path / "config.toml").write_text('[superlink.closed]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert words in refused("run", *arguments, status=status)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Return the config that a run would be submitted with."""
    sent: list[RunConfig] = []

    def submit(connection: str, config: RunConfig, *others: Any) -> str:
        sent.append(config)
        raise FederationError("no SuperLink")

    monkeypatch.setattr(run, "submit", submit)

    def call(*assignments: str) -> RunConfig:
        with pytest.raises(FederationError, match="no SuperLink"):
            run.run("closed", list(assignments))
        return sent.pop()

    return call


def test_a_run_that_can_be_seen_goes_on_with_its_own_config(
    run_directory: Path, submitted: Callable[..., RunConfig]
) -> None:
    config = submitted(f"resume-from={run_directory}", "round-timeout=99")
    assert (config.method, config.alpha, config.round_timeout) == ("fedavg", 0.7, 99.0)
    assert config.resume_from == config.output_dir == str(run_directory)


def test_a_run_on_another_machine_goes_on_with_the_config_that_is_given(submitted: Callable[..., RunConfig]) -> None:
    config = submitted("resume-from=/there/run", "alpha=0.7")
    assert (config.method, config.alpha, config.resume_from, config.output_dir) == ("disue", 0.7, "/there/run", "")


def test_a_log_that_was_shown_is_not_shown_again_with_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "submit", lambda *arguments: "7")
    monkeypatch.setattr(run, "tool", lambda name: "echo")
    monkeypatch.setattr(run, "end_of_run", lambda *arguments: "finished:stopped")
    with pytest.raises(FederationError, match=r"^run 7 ended as 'finished:stopped'$"):
        run.run("there", [])
    assert capsys.readouterr().out.splitlines() == ["run 7 on SuperLink connection 'there'", "log 7 there"]
