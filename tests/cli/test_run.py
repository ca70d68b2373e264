"""`disue run` where there is nothing to run on; `tests/e2e/test_deploy_*.py` have real SuperLinks."""

import sys
from pathlib import Path

import pytest

from disue.cli.main import main


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    (tmp_path / "config.toml").write_text('[superlink.closed]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["disue", "run", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    assert caught.value.code == status
    assert words in printed.err
    assert printed.err.count("\n") == 1
