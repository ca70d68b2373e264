"""Carries out cases in a process of its own, and writes what they came to: ``python record.py TREE PLACE CASE...``.

It knows of a tree no more than its command line, its run directory and Flower's ClientApp, so that it serves for
commits before and after a change of the house. Its environment pins what the processor can do: see `compare.PINNED`.
"""

import contextlib
import csv
import hashlib
import importlib
import io
import json
import platform
import sys
import tomllib
from pathlib import Path
from typing import Any

SOURCE_HASH = "source-hash"
PREFIXES = ("seconds", "server_seconds", "wall_seconds", "cpu_seconds")
"""Of what is no result."""


def carry_out(tree: Path, place: Path, names: list[str]) -> dict[str, Any]:
    """Return what each case came to."""
    own = importlib.import_module("cases")  # beside this file, whatever the tree has
    sys.path.insert(0, str(tree))
    module, _, function = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["disue"].partition(
        ":"
    )
    command = getattr(importlib.import_module(module), function)
    found: dict[str, Any] = {}
    for name in names:
        case, directory = own.CASES[name], place / name
        sets = own.SMALL | case.sets
        digest = Messages(case.random_bytes)
        begin = ["simulate", "--engine", "inline", "--clients", str(case.clients), "--output", str(directory)]
        calls = [begin + [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]]
        if case.rounds_more:
            rounds = int(sets["num-server-rounds"]) + case.rounds_more
            calls += [
                ["simulate", "--engine", "inline", "--resume", str(directory), "--set", f"num-server-rounds={rounds}"]
            ]
        with digest.watching():
            for call in calls:
                run(command, call)
        found[name] = {"numbers": numbers(directory), "hashes": hashes(directory) | {"messages": digest.value}}
    return found


def run(command: Any, words: list[str]) -> None:
    """Call the command line; raise `RuntimeError` with what it said if it fails."""
    said = io.StringIO()
    argv, sys.argv = sys.argv, ["disue", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = command()
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = argv
    if status:
        raise RuntimeError(f"disue {' '.join(words)}: status {status}\n{said.getvalue()}")


class Messages:
    """A hash of all messages that clients got and sent, in any order, without the hash of the source code.

    Parameters
    ----------
    random_bytes : bool
        Of arrays, bytes, lists and floats take the form alone: no seed decides them.
    """

    def __init__(self, random_bytes: bool) -> None:
        self._random = random_bytes
        self._told: list[str] = []

    @property
    def value(self) -> str:
        """The hash of what was seen until now."""
        return hashlib.sha256("".join(sorted(self._told)).encode()).hexdigest()

    @contextlib.contextmanager
    def watching(self) -> Any:
        """See what all ClientApps get and send inside."""
        from flwr.clientapp import ClientApp

        call = ClientApp.__call__

        def watched(app: Any, message: Any, context: Any) -> Any:
            self._told.append(self._digest(message))
            reply = call(app, message, context)
            self._told.append(self._digest(reply))
            return reply

        ClientApp.__call__ = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            ClientApp.__call__ = call  # type: ignore[method-assign]

    def _digest(self, message: Any) -> str:
        parts = [message.metadata.message_type.encode()]
        if message.has_content():
            for name, record in message.content.items():
                own = sorted(key for key in record if key != SOURCE_HASH)
                parts += [part for key in own for part in (f"{name} {key}".encode(), *self._value(record[key]))]
        else:
            parts.append(repr(message.error).encode())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def _value(self, value: Any) -> list[bytes]:
        if hasattr(value, "numpy"):
            array = value.numpy()
            form = f"{array.dtype} {array.shape}".encode()
            return [form] if self._random else [form, array.tobytes()]
        if self._random and isinstance(value, bytes | list | float):
            return [f"{type(value).__name__} {len(value) if isinstance(value, bytes | list) else ''}".encode()]
        return [repr(value).encode()]


def models(directory: Path) -> dict[str, Any]:
    """Return the tensors of a run's models, by file."""
    from safetensors.numpy import load_file

    files = [directory / "universal.safetensors", *sorted((directory / "experts").glob("*.safetensors"))]
    files += sorted(directory.glob("universal-*.safetensors"))
    return {path.relative_to(directory).as_posix(): load_file(path) for path in files if path.exists()}


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return the rounds of a run, without what they took."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith(PREFIXES)} for line in lines]


def clients(directory: Path) -> list[dict[str, str]]:
    """Return the clients of a run."""
    with (directory / "clients.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(directory: Path) -> dict[str, Any]:
    """Return what can be compared between machines: of each tensor its sum, its norm, its first and its last value."""
    import numpy as np

    def told(tensor: Any) -> list[float]:
        exact = tensor.astype(np.float64).ravel()
        return [float(f"{value:.9g}") for value in (exact.sum(), np.linalg.norm(exact), exact[0], exact[-1])]

    return {
        "models": {file: {key: told(own) for key, own in state.items()} for file, state in models(directory).items()},
        "rounds": rows(directory),
        "clients": clients(directory),
    }


def hashes(directory: Path) -> dict[str, str]:
    """Return a hash of each model, of the rounds and of the clients."""
    found = {}
    for file, state in models(directory).items():
        digest = hashlib.sha256()
        for key, tensor in state.items():
            digest.update(f"{key} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        found[file] = digest.hexdigest()
    for name, content in (("metrics.jsonl", rows(directory)), ("clients.csv", clients(directory))):
        found[name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return found


def key_of_this_machine() -> str:
    """Return what bits depend on: PyTorch's version, what is used of the processor, and how this one computes.

    Two processors of one kind may differ in the last bit, whatever is pinned: what some steps of training come to tells
    them apart. None of the tree's code has a part in it.
    """
    import torch

    version = torch.__version__.partition("+")[0]
    return f"torch {version} {platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_fingerprint()}"


def _fingerprint() -> str:
    """Return eight digits that two machines have alike if they train small networks to the same bits."""
    import numpy as np
    import torch
    from torch import nn

    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = [nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
        cnn = [nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)]
        cnn += [nn.Conv2d(16, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(600, 10)]
        for network in (nn.Sequential(*mlp), nn.Sequential(*cnn)):
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
            for examples in (5, 10, 20, 30, 32, 60):
                x, y = torch.randn(examples, 1, 28, 28), torch.randint(10, (examples,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                optimizer.step()
            for tensor in network.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        square = torch.randn(12, 12, dtype=torch.float64).numpy()
    digest.update(np.linalg.eigh(square @ square.T)[1].tobytes())
    return digest.hexdigest()[:8]


if __name__ == "__main__":
    tree, place, *names = sys.argv[1:]
    print(json.dumps({"key": key_of_this_machine(), "cases": carry_out(Path(tree), Path(place), names)}))
