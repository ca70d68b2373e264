"""`disue run` where there is nothing to run on; `tests/e2e/test_deploy_*.py` have real SuperLinks."""

from pathlib import Path

import pytest


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
