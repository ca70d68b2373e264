"""`disue certs`: the keys and certificates of a deployment, and the commands that use them.

The server's certificate is what nodes and people know the SuperLink by. A node is known by its own key, which is
registered with the SuperLink; it has no certificate.
"""

import ipaddress
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from disue.errors import ConfigError

PORT = 8000
FIRST_NODE_PORT = 9094
_CLOCK_SKEW = timedelta(hours=1)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def make_certificates(directory: Path, hosts: Sequence[str], nodes: int, days: int) -> None:
    """Write a new CA, a server certificate and a key pair per node into ``directory``, all of it or nothing.

    Parameters
    ----------
    directory : Path
        Missing or empty. It becomes ``ca.pem``, ``ca.key``, ``server.pem``, ``server.key`` and, for each node,
        ``nodes/node-<i>`` (OpenSSH private key) with ``nodes/node-<i>.pub``.
    hosts : sequence of str
        DNS names and IP addresses by which the SuperLink is reached.
    nodes : int
        Key pairs to make.
    days : int
        How long the certificates hold.

    Raises
    ------
    ConfigError
        If the directory holds something or cannot be written, or a host is neither a name nor an address.
    """
    names = [general_name(host) for host in hosts]
    directory = directory.absolute()
    try:
        if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
            raise ConfigError(f"DIR: '{directory}' exists and is not an empty directory; keys are never overwritten")
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))  # mode 0700
    except OSError as error:
        raise ConfigError(f"DIR: '{directory}' cannot be written ({error.strerror})") from None
    try:
        _write_authority_and_server(partial, names, days)
        (partial / "nodes").mkdir(mode=0o700)
        for i in range(1, nodes + 1):
            _write_node(partial / "nodes" / f"node-{i}")
        partial.rename(directory)
    except OSError as error:
        raise ConfigError(f"DIR: '{directory}' cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # what is left of it, if it was not renamed


def commands(directory: Path, hosts: Sequence[str], nodes: int) -> str:
    """Return a shell script, by steps, that starts the SuperLink, registers and starts the nodes, and runs the app."""
    directory = directory.absolute()
    address = f"{_in_url(hosts[0])}:{PORT}"

    def file(name: str) -> str:
        return shlex.quote(str(directory / name))

    ports = [FIRST_NODE_PORT + i for i in range(nodes)]
    register = [
        f"flwr supernode register {file(f'nodes/node-{i}.pub')} disue --name node-{i}" for i in range(1, nodes + 1)
    ]
    start = [
        f"flower-supernode --superlink {address} --root-certificates {file('ca.pem')} "
        f"--auth-supernode-private-key {file(f'nodes/node-{i}')} --port {port} "
        f"""--node-config 'name="node-{i}" data-path="/data"'"""
        for i, port in enumerate(ports, start=1)
    ]
    return "\n".join(
        [
            "# 1. On the server: the SuperLink. It needs server.key, server.pem and ca.pem.",
            f"flower-superlink --ssl-ca-certfile {file('ca.pem')} --ssl-certfile {file('server.pem')} "
            f"--ssl-keyfile {file('server.key')} --enable-supernode-auth --database superlink.db "
            f"--host 0.0.0.0 --port {PORT} --disable-runtime-dependency-installation",
            "",
            "# 2. Where you run from: tell `flwr` of it, once. It needs ca.pem.",
            'mkdir -p "${FLWR_HOME:-$HOME/.flwr}" && cat >> "${FLWR_HOME:-$HOME/.flwr}/config.toml" <<\'END\'',
            "[superlink.disue]",
            tomli_w.dumps({"address": address, "root-certificates": str(directory / "ca.pem")}).rstrip(),
            "END",
            "",
            "# 3. There: register the nodes' public keys.",
            *register,
            "",
            "# 4. On each client's machine: its SuperNode. It needs its own key and ca.pem, and no other key.",
            *start,
            "",
            "# 5. Where you run from.",
            f"disue run disue --set dataset=own --set min-clients={nodes}",
        ]
    )


def general_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate has it; raise `ConfigError` if it is neither a name nor an address."""
    try:
        if "%" not in host:  # what comes after it is a name that one machine gave to an interface of its own
            return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # not an address, so a name
    labels = host.split(".")
    if len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit():
        return x509.DNSName(host)
    raise ConfigError(f"--hosts: got '{host}'; expected DNS names and IP addresses, separated by commas")


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_authority_and_server(directory: Path, names: Sequence[x509.GeneralName], days: int) -> None:
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DisUE federation CA")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "DisUE SuperLink")])
    ca = (
        _builder(issuer, issuer, ca_key.public_key(), ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _builder(subject, issuer, server_key.public_key(), ca_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(directory / "ca.key", _pkcs8(ca_key), private=True)
    _write(directory / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    _write(directory / "server.key", _pkcs8(server_key), private=True)
    _write(directory / "server.pem", server.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(**wanted: bool) -> x509.KeyUsage:
    usages = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in usages.split()})


def _write_node(path: Path) -> None:
    """Write a key pair in the form that SuperNodes and `flwr supernode register` read: OpenSSH, a NIST curve."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(path, private, private=True)
    _write(path.with_name(f"{path.name}.pub"), public + b" " + path.name.encode() + b"\n")


def _pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, private: bool = False) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
