"""Hashes of the running source code: that clients compute as the server expects, and a run goes on with what began it.

Only what computes is hashed: comments, docstrings, layout and the help of config keys may differ. The command line is
in neither hash: it computes nothing.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

OF_CLIENTS = ("disue", "client_app")
"""The packages that clients run."""
PACKAGES = (*OF_CLIENTS, "strategies", "server_app")
"""The packages of the app, which are what it computes with."""
KEY, HELP = "Field", "description"
"""What declares a config key, and its keyword argument that holds the help."""
NO_CODE = ("ctx", "kind")
"""Fields of a syntax tree that follow from the rest, or say how a text is spelt."""


@cache
def source_hash(packages: tuple[str, ...] = PACKAGES) -> str:
    """Return a short SHA-256 over the code of packages of the app that this process runs from.

    Flower may load an app from a bundle, from the working directory or from an installed package;
    the hash is taken next to this very file, so it tells which of them won.
    """
    return hash_of(Path(__file__).resolve().parent.parent, packages)


def client_hash() -> str:
    """Return the hash of what clients run, which they and the server must have alike."""
    return source_hash(OF_CLIENTS)


def hash_of(root: Path, packages: tuple[str, ...]) -> str:
    """Return a short SHA-256 over the code of all Python files of packages; the same on every version of Python."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(_code_of(path))
    return digest.hexdigest()[:16]


@cache
def _code_of(path: Path) -> bytes:
    """Return the SHA-256 of a file's code; of one that is no Python the SHA-256 of its bytes."""
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a null byte is a ValueError in Python 3.11
        return hashlib.sha256(content).digest()
    words: list[str] = []
    _tell(tree, words)
    return hashlib.sha256("".join(words).encode()).digest()


def _tell(value: Any, words: list[str]) -> None:
    """Append what a part of a syntax tree says.

    Versions of Python differ in which empty fields there are, and in empty texts in an f-string: both are left out.
    """
    if isinstance(value, ast.JoinedStr):
        value.values = [own for own in value.values if getattr(own, "value", None) != ""]
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == KEY:
        value.keywords = [own for own in value.keywords if not _is_help(own)]
    if isinstance(value, ast.AST):
        words.append(f"{type(value).__name__}(")
        for name in type(value)._fields:
            own = getattr(value, name, None)
            if own is not None and own != [] and name not in NO_CODE:
                words.append(f"{name}=")
                _tell(own, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for own in value:
            if not (isinstance(own, ast.Expr) and _is_text(own.value)):
                _tell(own, words)
                words.append(",")
        words.append("]")
    else:
        words.append(ascii(value))


def _is_help(keyword: ast.keyword) -> bool:
    """Return whether a keyword of a config key's declaration is its help."""
    return keyword.arg == HELP and _is_text(keyword.value)


def _is_text(value: ast.expr) -> bool:
    """Return whether this is a text; one that stands alone is for people, as docstrings are."""
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
