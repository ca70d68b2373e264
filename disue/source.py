"""The hash of the running source code, so that server and clients can see that they run the same."""

import hashlib
from functools import cache
from pathlib import Path

PACKAGES = ("disue", "client_app", "strategies", "server_app")


@cache
def source_hash() -> str:
    """Return a short SHA-256 over all Python files of the app that this process runs from.

    Flower may load an app from a bundle, from the working directory or from an installed package;
    the hash is taken next to this very file, so it tells which of them won.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
