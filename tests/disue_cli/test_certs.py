"""`disue certs`: read by an independent verifier (Python's ssl, Flower's own loaders), and refused where it must be."""

import argparse
import os
import shlex
import socket
import ssl
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.supernode.register import try_load_public_key
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode, _try_setup_client_authentication

from disue.errors import ConfigError
from disue_cli.commands.certs import commands, make_certificates
from disue_cli.main import main

HOSTS = ["superlink", "localhost", "10.0.0.5", "::1"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs") / "made" / "here"
    make_certificates(directory, HOSTS, nodes=3, days=30)
    return directory


def greeting(directory: Path, host: str, ca: Path) -> str:
    """Serve one TLS connection with the server's certificate, and return what a client that expects ``host`` reads."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "server.pem", directory / "server.key")
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as connection:
                connection.sendall(b"hello")
        except ssl.SSLError:
            theirs.close()  # the client did not trust the certificate, which is what it says itself

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, client.wrap_socket(ours, server_hostname=host) as connection:
            return connection.recv(5).decode()
    finally:
        thread.join()


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_with_the_ca_trusts_the_server_by_each_of_its_names(directory: Path, host: str) -> None:
    assert greeting(directory, host, directory / "ca.pem") == "hello"


@pytest.mark.parametrize("host", ["elsewhere", "10.0.0.6"])
def test_nobody_trusts_it_by_another_name(directory: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch|not valid for"):
        greeting(directory, host, directory / "ca.pem")


def test_nobody_trusts_it_with_another_ca(directory: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other", HOSTS, nodes=1, days=30)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        greeting(directory, "localhost", tmp_path / "other" / "ca.pem")


def test_private_files_are_for_the_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_certificates(tmp_path / "certs", ["localhost"], nodes=2, days=30)
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "certs", *(tmp_path / "certs").rglob("*"))
    }
    assert modes == {
        "certs": 0o700,
        "certs/ca.key": 0o600,
        "certs/ca.pem": 0o644,
        "certs/server.key": 0o600,
        "certs/server.pem": 0o644,
        "certs/nodes": 0o700,
        "certs/nodes/node-1": 0o600,
        "certs/nodes/node-1.pub": 0o644,
        "certs/nodes/node-2": 0o600,
        "certs/nodes/node-2.pub": 0o644,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["certs"]


def test_flower_reads_the_keys_of_the_nodes_and_they_are_pairs(directory: Path) -> None:
    seen = set()
    for i in (1, 2, 3):
        path = directory / "nodes" / f"node-{i}"
        arguments = argparse.Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
        keys = _try_setup_client_authentication(arguments)
        assert keys is not None
        public = load_ssh_public_key(path.with_suffix(".pub").read_bytes())
        assert keys[1] == public == load_ssh_private_key(path.read_bytes(), None).public_key()
        seen.add(try_load_public_key(path.with_suffix(".pub")))
    assert len(seen) == 3


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", ["localhost"], nodes=1, days=30)
    before = {path: path.read_bytes() for path in (tmp_path / "certs").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is not an empty directory; keys are never overwritten"):
        make_certificates(tmp_path / "certs", ["localhost"], nodes=1, days=30)
    assert {path: path.read_bytes() for path in (tmp_path / "certs").rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    make_certificates(tmp_path / "empty", ["localhost"], nodes=1, days=30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["certs", "empty"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hosts", "a b", "--nodes", "1"], "--hosts: got 'a b'; expected DNS names and IP addresses"),
        (["--hosts", "10.0.0.500", "--nodes", "1"], "--hosts: got '10.0.0.500'"),
        (["--hosts", "", "--nodes", "1"], "--hosts: got ''"),
        (["--hosts", "a,,b", "--nodes", "1"], "--hosts: got ''"),
    ],
)
def test_a_bad_host_is_one_line_and_status_2(tmp_path: Path, refused, arguments: list[str], words: str) -> None:  # type: ignore[no-untyped-def]
    assert words in refused("certs", str(tmp_path / "certs"), *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["disue", "certs", "/proc/certs", "--hosts", "localhost", "--nodes", "1"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "DIR: '/proc/certs' cannot be written" in capsys.readouterr().err


def test_the_printed_commands_are_ones_that_flower_takes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as a shell does, and then by Flower's own parsers; `tests/e2e/test_deploy_tls.py` runs such commands."""
    script = commands(directory, HOSTS, nodes=3)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    lines = [shlex.split(line) for line in script.splitlines() if line and line[0] not in "#[" and "<<" not in line]
    superlinks = [line for line in lines if line[0] == "flower-superlink"]
    supernodes = [line for line in lines if line[0] == "flower-supernode"]
    registered = [line for line in lines if line[:3] == ["flwr", "supernode", "register"]]
    assert (len(superlinks), len(supernodes), len(registered)) == (1, 3, 3)
    superlink = _parse_args_run_superlink().parse_args(superlinks[0][1:])
    assert superlink.enable_supernode_auth
    assert not superlink.insecure
    nodes = [_parse_args_run_supernode().parse_args(line[1:]) for line in supernodes]
    assert [Path(node.auth_supernode_private_key) for node in nodes] == [
        Path(line[3]).with_suffix("") for line in registered
    ]
    assert {node.superlink for node in nodes} == {"superlink:8000"}
    assert len({node.port for node in nodes}) == 3
    files = [superlink.ssl_certfile, superlink.ssl_keyfile, superlink.ssl_ca_certfile]
    files += [node.root_certificates for node in nodes] + [line[3] for line in registered]
    assert all(Path(file).is_file() for file in files)
    config = script.split("END'\n")[1].split("\nEND")[0]
    connection = tomllib.loads(config)["superlink"]["disue"]
    assert connection == {"address": "superlink:8000", "root-certificates": str(directory / "ca.pem")}


def test_the_command_prints_the_commands_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "certs"
    monkeypatch.setattr(sys, "argv", ["disue", "certs", str(place), "--hosts", "localhost", "--nodes", "2"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert commands(place, ["localhost"], 2) in printed
    for path in (place / "ca.key", place / "server.key", place / "nodes" / "node-1"):
        body = path.read_text().splitlines()[1]
        assert body not in printed


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%';reboot;'", "\u017fuperlink", "\u212a"])
def test_hosts_that_only_one_machine_or_no_certificate_knows_are_refused(tmp_path: Path, refused, host: str) -> None:  # type: ignore[no-untyped-def]
    assert f"--hosts: got '{host}'" in refused("certs", str(tmp_path / "certs"), "--hosts", host, "--nodes", "1")


def test_any_directory_can_be_named_in_flowers_configuration() -> None:
    place = Path('/keys/a "b"\n\\c')
    text = commands(place, ["localhost"], 1).partition("<<'END'\n")[2].partition("\nEND\n")[0]
    assert tomllib.loads(text)["superlink"]["disue"] == {
        "address": "localhost:8000",
        "root-certificates": str(place / "ca.pem"),
    }
