"""`disue report`."""

import sys
from pathlib import Path

import pytest
from synthetic import write_run

from disue_cli.main import main


def disue(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["disue", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_it_makes_the_report_again_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=1)
    monkeypatch.chdir(tmp_path)
    assert disue(monkeypatch, "report", first) == 0
    assert capsys.readouterr().out == f"report: {first / 'report.html'}\n"
    assert "digits" in (first / "report.html").read_text()
    assert disue(monkeypatch, "report", first, second) == 0
    assert "Comparison of 2 runs" in (tmp_path / "comparison.html").read_text()
    assert disue(monkeypatch, "report", first, second, "--output", "both.html") == 0
    assert (tmp_path / "both.html").exists()


@pytest.mark.parametrize("words", [("missing",), ("run", "missing"), ("empty",), ("damaged",)])
def test_bad_directories_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "damaged") / "clients.csv").write_text("x\n1\n")
    assert disue(monkeypatch, "report", *(tmp_path / word for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("disue: '")
    assert str(tmp_path / words[-1]) in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))
