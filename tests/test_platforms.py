"""It starts where Linux is not: no call that macOS lacks, and a simulation without all that Linux alone has."""

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from disue.source import PACKAGES
from disue_cli.compare.cells import cores

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in (*PACKAGES, "disue_cli", "benchmarks") for path in (ROOT / package).rglob("*.py"))
OF_LINUX = ("/proc", "/sys/", "/dev/shm")
PSUTIL = {"cpu_affinity", "io_counters", "ionice", "rlimit", "memory_maps", "cpu_num", "sensors_temperatures"}
"""What psutil does not offer on macOS, after its documentation."""
MEASURED_ON_LINUX = {
    "benchmarks/large_round.py": "resident memory without pages of files",
    "benchmarks/machine.py": "the name of the processor, where the file is there",
}
"""Files that read what only Linux has, and why: none that a simulation needs."""


def _defined(body: list[ast.stmt], platform: str) -> Iterator[str]:
    """Yield the names that a stub defines on a platform; of two versions of Python it takes both."""
    for statement in body:
        if isinstance(statement, ast.If):
            text = ast.unparse(statement.test)
            compared = re.findall(r"sys\.platform (==|!=) '(\w+)'", text)
            holds = all((name == platform) == (sign == "==") for sign, name in compared)
            if " or " in text and compared:
                holds = any((name == platform) == (sign == "==") for sign, name in compared)
            if holds:
                yield from _defined(statement.body, platform)
            if not (holds and compared):
                yield from _defined(statement.orelse, platform)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                yield from (
                    _stub(statement.module or "", platform) if alias.name == "*" else [alias.asname or alias.name]
                )


@cache
def _stub(module: str, platform: str) -> frozenset[str]:
    """Return what typeshed, which mypy brings, says that a module of the standard library has."""
    library = Path(pytest.importorskip("mypy").__file__).parent / "typeshed" / "stdlib"
    place = library.joinpath(*module.split("."))
    path = next((path for path in (place.with_suffix(".pyi"), place / "__init__.pyi") if path.is_file()), None)
    return frozenset(_defined(ast.parse(path.read_text()).body, platform)) if path else frozenset()


def lacking(module: str) -> frozenset[str]:
    """Return what a module has on Linux and lacks on macOS."""
    return _stub(module, "linux") - _stub(module, "darwin")


def _uses(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each module with a name that is taken from it."""
    modules = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def _faults(source: str) -> list[str]:
    tree = ast.parse(source)
    faults = [f"{module}.{name}" for module, name in _uses(tree) if name in lacking(module)]
    faults += [
        f"psutil's {node.attr}" for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in PSUTIL
    ]
    return faults + [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(OF_LINUX)
    ]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import os\nos.sched_getaffinity(0)", "os.sched_getaffinity"),
        ("from os import memfd_create", "os.memfd_create"),
        ("import signal as s\ns.SIGRTMIN", "signal.SIGRTMIN"),
        ("import psutil\npsutil.Process().cpu_affinity()", "psutil's cpu_affinity"),
        ("from pathlib import Path\nPath('/proc/self')", "/proc/self"),
    ],
)
def test_a_call_that_only_linux_has_is_found(source: str, fault: str) -> None:
    assert _faults(source) == [fault]


def test_what_macos_has_too_is_no_fault() -> None:
    assert not _faults("import os, fcntl, signal\nos.fsync(1), fcntl.flock, signal.SIGHUP, os.O_NOFOLLOW, os.kill")
    assert not _faults("import os\ngetattr(os, 'sched_getaffinity', None)")


def test_no_source_needs_what_only_linux_has() -> None:
    found = {path.relative_to(ROOT).as_posix(): _faults(path.read_text()) for path in SOURCES}
    assert {name for name, faults in found.items() if faults} == MEASURED_ON_LINUX.keys(), found


@pytest.fixture
def without_linux(monkeypatch: pytest.MonkeyPatch) -> int:
    """Remove all that macOS lacks from the modules of the standard library, and return how much that is.

    Libraries are loaded before: what they load depends on the system that they were built for.
    """
    for library in ("psutil", "disue_cli.commands.simulate", "disue_cli.engines.inline"):
        importlib.import_module(library)
    monkeypatch.setattr("tempfile._O_TMPFILE_WORKS", False)  # as it is where that flag is missing
    removed = 0
    for module in ("os", "signal", "socket", "time", "select", "mmap", "fcntl", "resource", "threading", "shutil"):
        for name in lacking(module):
            if hasattr(importlib.import_module(module), name):
                monkeypatch.delattr(f"{module}.{name}")
                removed += 1
    return removed


def test_a_simulation_starts_without_what_only_linux_has(
    without_linux: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from disue_cli.main import main

    assert without_linux > 20 or sys.platform != "linux"
    quick = [
        "--set",
        "model=mlp",
        "--set",
        "num-server-rounds=1",
        "--set",
        "local-epochs=1",
        "--set",
        "distill-steps=5",
    ]
    words = ["disue", "simulate", "--engine", "inline", "--clients", "6", *quick, "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").is_file()
    assert cores() == os.cpu_count()


def test_the_cores_are_those_that_this_process_may_use() -> None:
    usable: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    assert cores() == (len(usable(0)) if usable else os.cpu_count())
