"""The surroundings of the Ray engine, with small programs in place of Flower's: proxies, long names, failed starts."""

import os
import socket
import sys
from pathlib import Path

import pytest

from disue.errors import ConfigError, FederationError
from disue_cli.engines import flower, ray
from disue_cli.engines.flower import around_proxies, cause, quiet_environment
from server_app.config import RunConfig

NOBODY = "http://127.0.0.1:9"  # a proxy that refuses all connections
ANSWERS = """
import http.server, os, pathlib, sys
pathlib.Path("environment").write_text("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""
CHAIN = """
print('''Successfully started run 7
INFO: starting
Traceback (most recent call last):
  File "client.py", line 1, in <module>
ValueError: an earlier one, which was dealt with
INFO: going on
Traceback (most recent call last):
  File "node.py", line 1, in <module>
OSError: AF_UNIX path length cannot exceed 107 bytes

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "run.py", line 1, in <module>
RuntimeError: Simulation crashed.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "app.py", line 1, in <module>
RuntimeError: Ending simulation.
Exit Code: 700

For more, read on: https://example.org''')
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs, which are taken for Flower's."""
    for variable in list(os.environ):
        if variable.lower().endswith("_proxy") or variable.startswith("RAY_"):
            monkeypatch.delenv(variable)
    directory = tmp_path / "tools"
    directory.mkdir()
    for module in (ray, flower):
        monkeypatch.setattr(module, "tool", lambda name: str(directory / name))
    return directory


def program(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable} -IS\n{code}")
    path.chmod(0o755)


def seen_by_superlink(work: Path) -> dict[str, str]:
    work.mkdir()
    with ray.private_superlink(work):
        lines = (work / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_local_connections_bypass_a_proxy(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools / "flower-superlink", ANSWERS)
    monkeypatch.setenv("http_proxy", NOBODY)
    monkeypatch.setenv("no_proxy", "intra.example.org, .local")
    monkeypatch.setattr(ray, "START_TIMEOUT", 20.0)
    seen = seen_by_superlink(tmp_path / "work")
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        assert seen[variable] == "intra.example.org,.local,127.0.0.1,localhost,::1"
    assert seen["http_proxy"] == NOBODY
    assert os.environ["no_proxy"] == "intra.example.org, .local"


@pytest.mark.parametrize(
    ("before", "general", "of_grpc"),
    [
        ({}, "127.0.0.1,localhost,::1", "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a,localhost", "no_proxy": "b"}, "b,a,localhost,127.0.0.1,::1", "b,a,localhost,127.0.0.1,::1"),
        ({"no_grpc_proxy": "g", "no_proxy": "b"}, "b,127.0.0.1,localhost,::1", "g,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a,*"}, "*", "*"),
    ],
)
def test_what_was_exempt_from_the_proxy_stays_so(before: dict[str, str], general: str, of_grpc: str) -> None:
    assert around_proxies(before) == {"no_proxy": general, "NO_PROXY": general, "no_grpc_proxy": of_grpc}


def test_without_a_proxy_flowers_commands_get_no_word_of_one(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {name for name in quiet_environment() if name.lower().endswith("_proxy")}
    monkeypatch.setenv("HTTPS_PROXY", NOBODY)
    assert quiet_environment()["no_proxy"] == "127.0.0.1,localhost,::1"


def test_ray_gets_a_short_directory(tools: Path, tmp_path: Path) -> None:
    program(tools / "flower-superlink", ANSWERS)
    seen = seen_by_superlink(tmp_path / ("x" * 120))
    place = Path(seen["RAY_TMPDIR"])
    assert len(str(place / ray.SOCKET_OF_RAY)) <= 103
    assert not place.exists()  # it went with the run
    assert seen["RAY_ADDRESS"] == "local"


def test_a_directory_of_the_users_own_and_a_cluster_of_the_users_own_are_kept(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tools / "flower-superlink", ANSWERS)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/mine")
    assert seen_by_superlink(tmp_path / "1")["RAY_TMPDIR"] == "/tmp/mine"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 120)
    with pytest.raises(ConfigError, match="^RAY_TMPDIR: .* a name of 125 bytes; use a directory with at most 3[0-9]$"):
        seen_by_superlink(tmp_path / "2")
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert seen_by_superlink(tmp_path / "3")["RAY_ADDRESS"] == address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999999", "head"]
)
def test_a_cluster_that_is_not_there_is_refused_at_once(
    address: str, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS: no cluster answers at '{address}' "):
        seen_by_superlink(tmp_path / "work")


def test_where_no_short_directory_is_to_be_had_the_run_is_refused(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "SHORT_PLACES", (str(tmp_path / "missing"),))
    with pytest.raises(ConfigError, match="^RAY_TMPDIR: "):
        seen_by_superlink(tmp_path / ("x" * 120))


def fails(directory: Path) -> str:
    with pytest.raises(FederationError) as caught:
        ray.run_ray(RunConfig(output_dir=str(directory)), 2, 0.0, lambda row: None)
    return str(caught.value)


def test_a_superlink_that_does_not_start_says_why_and_leaves_its_log(tools: Path, tmp_path: Path) -> None:
    program(tools / "flower-superlink", "import sys; print('INFO: hello'); sys.exit('ERROR: port 8000 is taken')")
    kept = tmp_path / "runs" / "first.log"
    assert fails(tmp_path / "runs" / "first") == (
        f"the SuperLink did not start (it ended with status 1): ERROR: port 8000 is taken; the log is in '{kept}'"
    )
    assert "INFO: hello" in kept.read_text()


def test_a_superlink_that_never_answers_says_so(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "START_TIMEOUT", 0.3)
    program(tools / "flower-superlink", "import time; print('retrying', flush=True); time.sleep(60)")
    assert fails(tmp_path / "run").startswith("the SuperLink did not start (no answer on port ")


def test_a_simulation_that_does_not_start_says_why_and_leaves_its_log(tools: Path, tmp_path: Path) -> None:
    program(tools / "flower-superlink", ANSWERS)
    program(tools / "flwr", "import sys\nif sys.argv[1] == 'ls': print('{}'); sys.exit()\n" + CHAIN)
    (tmp_path / "run").mkdir()
    kept = tmp_path / "run" / "flower.log"
    assert fails(tmp_path / "run") == (
        f"the run ended as 'unknown': OSError: AF_UNIX path length cannot exceed 107 bytes; the log is in '{kept}'"
    )
    assert "an earlier one" in kept.read_text()


def test_a_log_that_cannot_be_kept_hides_no_cause(tools: Path, tmp_path: Path) -> None:
    program(tools / "flower-superlink", "import sys; sys.exit('ERROR: port 8000 is taken')")
    (tmp_path / "file").touch()
    assert "ERROR: port 8000 is taken; the log could not be kept" in fails(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ([], "it said nothing"),
        (["a", "  ", "\x1b[91mERROR \x1b[0m:  b", ""], "ERROR :  b"),
        (["Traceback (most recent call last):", "  f", "grpc._channel.Died: no"], "grpc._channel.Died: no"),
        (["Traceback (most recent call last):", "  f", "strange: no"], "strange: no"),
    ],
)
def test_the_cause_is_one_line_of_the_log(log: list[str], expected: str) -> None:
    assert cause(log) == expected
