"""Commands write to any encoding, to streams that are closed, and to pipes that nobody reads: without a traceback."""

import ast
import io
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disue.errors import DisueError
from disue.source import PACKAGES
from disue_cli.main import main
from disue_cli.terminal import PLAIN

ROOT = Path(__file__).parents[2]
ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8"]
COMMANDS = ["simulate", "compare", "run", "certs", "report", "watch", "predict", "assign", "export"]


class Terminal:
    """Both streams of a command, in one encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self._monkeypatch = monkeypatch
        self._encoding = encoding

    def run(self, *words: object) -> tuple[int, str, str]:
        """Return a command's status, and what it wrote."""
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=self._encoding) for _ in range(2)]
        self._monkeypatch.setattr(sys, "argv", ["disue", *map(str, words)])
        self._monkeypatch.setattr(sys, "stdout", streams[0])
        self._monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as caught:
            main()
        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue().decode(self._encoding) for stream in streams)  # type: ignore[attr-defined]
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err


@pytest.fixture(params=ENCODINGS)
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch, request.param)


@pytest.fixture(scope="module")
def foreign(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in a directory, and with names of classes, that neither Latin-1 nor ASCII has."""
    run = tmp_path_factory.mktemp("łódź") / "猫 ▁█"
    shutil.copytree(finished, run)
    config = run / "config.toml"
    lines = config.read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(lines)
    for digit in range(10):
        text = text.replace(f'    "{digit}",\n', f'    "猫{digit}",\n')
    assert "猫7" in text
    config.write_text(text, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    (run / "data").mkdir()
    Image.fromarray(pixels).save(run / "data" / "日本.png")
    return run


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(terminal: Terminal, command: str | None) -> None:
    status, out, _ = terminal.run(*([command] if command else []), "--help")
    assert status == 0
    assert "Usage" in out


def test_what_finished_runs_are_asked(
    terminal: Terminal, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "disue_cli.commands.export.write_model", lambda *_: None
    )  # it takes seconds to import the exporter
    image = foreign / "data" / "日本.png"
    for words, part in (
        (("predict", foreign, image), "0"),
        (("predict", foreign, image, "--format", "csv", "--top", "10"), "image,expert,rank,class,probability"),
        (("predict", foreign, image, "--format", "json"), '"class": "'),
        (("assign", foreign, foreign / "data"), "cluster"),
        (("export", foreign, "--format", "torch", "--output", tmp_path / "é猫.pt2"), "universal: "),
        (("report", foreign, "--output", tmp_path / "ł.html"), "report: "),
        (("watch", foreign), "round"),
        (("certs", tmp_path / "clés 猫", "--hosts", "localhost", "--nodes", "1"), "keys and certificates"),
    ):
        status, out, err = terminal.run(*words)
        assert status == 0, words
        assert all(line.startswith(("disue: these images", "warning: ")) for line in err.splitlines()), err
        assert part in out


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--set", "method=猫"),
        ("simulate", "--set", "猫=1"),
        ("simulate", "--set", "proxy=path:/no/such/猫", "--engine", "inline"),
        ("compare", "--output", "猫", "--seeds", "猫"),
        ("compare", "--output", "out", "--methods", "猫"),
        ("run", "猫", "--set", "method=猫"),
        ("report", "/no/such/猫"),
        ("watch", "/no/such/猫\udcff"),
        ("predict", "/no/such/猫", "a.png"),
        ("assign", "/no/such/猫", "a"),
        ("export", "/no/such/猫", "--format", "onnx"),
        ("certs", "/no/such/猫", "--hosts", "猫 猫", "--nodes", "1"),
    ],
)
def test_error_lines(
    terminal: Terminal, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = terminal.run(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("disue: ")
    assert err.count("\n") == 1
    assert "猫" in err or "\\u732b" in err


def test_runs(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["--set", "model=mlp", "--set", "num-server-rounds=1", "--set", "train-examples=10", "--clients", "4"]
    quick += [
        "--set",
        "global-test-size=50",
        "--set",
        "distill-steps=2",
        "--set",
        "num-groups=9",
        "--set",
        "report=false",
    ]
    status, out, err = terminal.run("simulate", "--engine", "inline", "--output", tmp_path / "猫", *quick)
    assert status == 0
    assert "round 1/1" in out
    assert "warning: num-groups" in err
    assert "\\u732b" in out or "猫" in out
    failed = DisueError("no 猫 at all")
    monkeypatch.setattr(
        "disue_cli.commands.compare.run_cells", lambda cells, _, on_done: [on_done(cells[0], failed)] and cells
    )
    again = ["--clients", "4", "--methods", "local", "--seeds", "7,", "--output", tmp_path / "łł", *quick[:-2]]
    status, out, err = terminal.run("compare", *again)
    assert (status, err.count("\n")) == (1, 1)
    assert "failed: no 猫 at all" in out or "failed: no \\u732b at all" in out


def test_the_panel_has_plain_letters_for_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.live import Live

    from disue_cli.terminal import prepare_streams
    from disue_cli.views import LiveView
    from disue_cli.watching import Sight

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    prepare_streams()
    rows = [{"round": i + 1, "universal_accuracy": i / 8} for i in range(8)]
    Console(width=90).print(LiveView(Live(), "a • run").panel(Sight(rows=rows, rounds=9)))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "0.875  _.-~=+*#" in text
    assert "a * run" in text
    assert all(len(letter) == 1 and plain.isascii() for letter, plain in PLAIN.items())


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["disue", "report", "/no/such"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    monkeypatch.setattr(sys, "argv", ["disue", "--help"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0


@pytest.mark.parametrize(
    "words", [("--help",), ("--version",), ("predict", "RUN", "IMAGE", "--format", "csv"), ("watch", "RUN")]
)
def test_a_pipe_that_nobody_reads(
    words: tuple[str, ...], foreign: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    places = {"RUN": str(foreign), "IMAGE": str(foreign / "data" / "日本.png")}
    monkeypatch.setattr(sys, "argv", ["disue", *(places.get(word, word) for word in words)])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "Traceback" not in capfd.readouterr().err
    with suppress(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_one_line(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "argv", ["disue", "watch", str(foreign)])
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("disue: ")
    assert "output cannot be written (No space left on device)" in line
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_files_and_the_words_of_other_programs_are_not_read_in_the_encoding_of_the_place() -> None:
    for package in (*PACKAGES, "disue_cli"):
        for path in (ROOT / package).rglob("*.py"):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                given = {keyword.arg for keyword in call.keywords}
                where = f"{path.name}:{call.lineno}"
                if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
                    assert "encoding" in given or None in given, where
                if name == "open" and not any("b" in ast.unparse(argument) for argument in call.args[:2]):
                    own = ast.unparse(call.func) in ("Image.open", "os.open", "archive.open", "direct.open")
                    assert own or "encoding" in given, where
                assert "text" not in given or name not in ("run", "Popen", "check_output"), where
