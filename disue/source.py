"""Hashes of the running source code: that clients compute as the server expects, and a run goes on with what began it.

The command line is in neither: it computes nothing.
"""

import hashlib
from functools import cache
from pathlib import Path

OF_CLIENTS = ("disue", "client_app")
"""The packages that clients run."""
PACKAGES = (*OF_CLIENTS, "strategies", "server_app")
"""The packages of the app, which are what it computes with."""


@cache
def source_hash(packages: tuple[str, ...] = PACKAGES) -> str:
    """Return a short SHA-256 over all Python files of packages of the app that this process runs from.

    Flower may load an app from a bundle, from the working directory or from an installed package;
    the hash is taken next to this very file, so it tells which of them won.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def client_hash() -> str:
    """Return the hash of what clients run, which they and the server must have alike."""
    return source_hash(OF_CLIENTS)
