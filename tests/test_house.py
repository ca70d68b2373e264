"""Rules of the house: who may import whom, what ships to the clients, and documents that must be true."""

import ast
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_disk

from disue.errors import ConfigError
from disue.files import RUN_FORMAT
from disue.nodes import NodeConfig
from disue.registry import Registry
from disue.source import PACKAGES, client_hash, source_hash
from disue_cli.config_table import config_table
from disue_cli.engines.flower import copy_app
from server_app.checks import check_names
from server_app.config import RunConfig
from strategies.methods import METHODS

ROOT = Path(__file__).parents[1]


def test_imports_point_down_only() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_flower_strategy_knows_what_a_method_is_and_no_method() -> None:
    imports = re.findall(r"strategies\.methods[.\w]*", (ROOT / "strategies" / "flower.py").read_text())
    assert set(imports) == {"strategies.methods.base"}


def test_nothing_is_decided_by_the_name_of_a_method() -> None:
    """What a method takes and goes with it declares (`Uses`, `Supports`, `Needs`)."""
    names = "|".join(map(re.escape, METHODS))
    told = rf"""["'](?:{names})["']"""
    decided = re.compile(rf"(?:[=!]=|\bin\b|\bcase\b)\s*[\[({{]?\s*{told}|{told}\s*(?:[=!]=|\bin\b)|_METHODS\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for package in ("disue", "client_app", "strategies", "server_app", "disue_cli")
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if decided.search(line) and "phase" not in line  # one is called local, too
    ]
    assert not found


ROOMS = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for floor in ("disue", "client_app", "strategies", "server_app")
    for path in (ROOT / floor).glob("*/__init__.py")
)


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_says_what_is_in_it(room: str) -> None:
    """Each file by its name; of the methods, which are many, only how to add one."""
    text = (ROOT / room / "README.md").read_text()
    files = {path.stem for path in (ROOT / room).glob("[!_]*.py")}
    assert "May import" in text
    assert len(text.splitlines()) <= 15
    assert room == "strategies/methods" or not files - set(re.findall(r"`(\w+)`", text))


def test_the_bundle_holds_the_app_and_nothing_else(tmp_path: Path) -> None:
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))).namelist()
    assert {name.split("/")[0] for name in names} == {*PACKAGES, "pyproject.toml", ".info"}
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sources <= set(names)


def test_the_copied_app_has_the_hash_of_the_running_one(tmp_path: Path) -> None:
    assert hashes_of(copy_app(tmp_path / "app")) == [client_hash(), source_hash()]


def hashes_of(app: Path) -> list[str]:
    """Return the hashes that a copy of the app says that it has."""
    code = "from disue.source import client_hash, source_hash; print(client_hash(), source_hash())"
    done = subprocess.run([sys.executable, "-c", code], cwd=app, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("changed", "for_clients", "for_a_run"),
    [
        ("client_app/train.py", True, True),
        ("disue/wire/train.py", True, True),
        ("strategies/distillation/teachers.py", False, True),
        ("server_app/card.py", False, True),
        ("disue_cli/main.py", False, False),
    ],
)
def test_clients_must_have_what_clients_compute_with_and_a_run_goes_on_with_all_that_computes(
    tmp_path: Path, changed: str, for_clients: bool, for_a_run: bool
) -> None:
    app = copy_app(tmp_path / "app")
    (app / changed).parent.mkdir(exist_ok=True)
    (app / changed).open("a").write("\nCHANGED = True\n")
    differ = [found != own for found, own in zip(hashes_of(app), (client_hash(), source_hash()), strict=True)]
    assert differ == [for_clients, for_a_run]


def test_sites_whose_comments_and_docstrings_differ_can_work_together(tmp_path: Path) -> None:
    app = copy_app(tmp_path / "app")
    for package in PACKAGES:
        for path in (app / package).rglob("*.py"):
            text = re.sub(r'^"""', '"""Another beginning. ', path.read_text())
            path.write_text(f"# A comment.\n\n{text}\n# The end.\n")
    assert hashes_of(app) == [client_hash(), source_hash()]


def test_the_table_of_keys_is_up_to_date() -> None:
    assert (ROOT / "docs" / "CONFIG.md").read_text() == config_table(), (
        "run: python -m disue_cli.config_table > docs/CONFIG.md"
    )


def registries() -> list[Registry[Any]]:
    """Return every registry that the app's packages hold."""
    modules = [
        import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Registry)}
    return list(found.values())


def test_the_page_lists_the_keys_that_may_change_when_a_run_goes_on() -> None:
    """Beside those that say where the run is."""
    text = " ".join((ROOT / "README.md").read_text().split())
    sentence = re.search(r"The settings are those in `config.toml`\. Only (.*?)\. On real machines", text)
    assert sentence
    assert sorted(re.findall(r"`([^`]+)`", sentence[1])) == sorted(
        RunConfig.complete().changeable_keys() - {"output-dir", "resume-from"}
    )


def test_every_part_that_a_key_can_name_is_in_the_table_of_keys_and_checked_before_a_run() -> None:
    lines = {line.split("`")[1]: line for line in config_table().splitlines() if line.startswith("| `")}
    assert lines.keys() == RunConfig().to_flower().keys()
    found = registries()
    assert len(found) >= 8
    for registry in found:
        allowed = lines[registry.key].split("|")[3]
        assert set(registry) <= {word.strip() for word in allowed.split(",")}, registry.key
        with pytest.raises(ConfigError, match=f"^{registry.key}: 'none such' does not exist"):
            check_names(RunConfig(**{registry.key: "none such"}))


def test_every_algorithm_that_a_key_can_name_is_described() -> None:
    text = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("[D-Z]*.md")))
    algorithms = [
        own for own in registries() if own.key in ("method", "clusterer", "signature", "teacher", "aggregator")
    ]
    assert not {(own.key, name) for own in algorithms for name in own if f"`{name}`" not in text}


@pytest.mark.parametrize(
    ("head", "names"),
    [
        ("| `method` | what |", list(METHODS)),
        ("| node config | what |", [name.replace("_", "-") for name in NodeConfig.model_fields]),
    ],
)
def test_a_table_of_the_readme_has_each_name_once(head: str, names: list[str]) -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition(head + "\n| --- | --- |\n")
    firsts = [line.split("|")[1] for line in rest.partition("\n\n")[0].splitlines()]
    assert sorted(name for first in firsts for name in re.findall("`([^`]+)`", first)) == sorted(names)


def test_every_file_that_a_run_leaves_is_in_the_readmes_table(run) -> None:  # type: ignore[no-untyped-def]
    _, _, rest = (ROOT / "README.md").read_text().partition("| file | what |\n| --- | --- |\n")
    firsts = "".join(line.split("|")[1] for line in rest.partition("\n\n")[0].splitlines())
    named = {re.sub("<.*", "", name) for name in re.findall("`([^`]+)`", firsts)}
    directory = run(report=True).directory
    left = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    assert not [name for name in left if not any(name.startswith(own) for own in named)]


def test_the_readme_says_the_format_that_runs_write() -> None:
    assert f"`config.toml` begins with `format = {RUN_FORMAT}`," in (ROOT / "README.md").read_text()


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for dependency in project["dependencies"]:
        assert dependency.split(">")[0].split("[")[0].lower() in pinned


def versioned_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git cannot list the files: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_every_file_that_the_docs_show_or_link_to_is_under_version_control() -> None:
    known = {path.resolve() for path in versioned_files()}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).resolve() in known, f"{page.name} links to {target}"


def test_every_shell_block_about_deploying_is_run_by_a_test() -> None:
    text = (ROOT / "docs" / "DEPLOY.md").read_text()
    labels = re.findall(r"<!-- (\w+) -->\n```bash\n", text)
    assert len(labels) == text.count("```bash")
    tests = [path.read_text() for path in (ROOT / "tests" / "e2e").glob("test_deploy_*.py")]
    for label in set(labels):
        assert any(re.search(rf'(deployed|blocks)\(.*"{label}"', test) for test in tests), label


def test_no_key_and_no_certificate_is_under_version_control() -> None:
    files = [path for path in versioned_files() if path.is_file()]
    assert len(files) > 100
    for path in files:
        assert path.suffix not in (".pem", ".key", ".crt", ".p12"), path
        assert not re.search(rb"-----BEGIN [A-Z ]+-----\s+[A-Za-z0-9+/=]{40}", path.read_bytes()), path


FLOORS = ("disue", "client_app", "strategies", "server_app", "disue_cli")
PUBLIC = {"_fields", "_replace", "_asdict", "_make"}
"""Of every named tuple."""
PATCHES = ("setattr", "delattr", "getattr", "setitem", "delitem")


def is_private(name: str) -> bool:
    return name.strip("_") != "" and name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def names_written(tree: ast.AST) -> set[str]:
    """Return the names that a file defines or assigns, those of attributes included."""
    return {
        *(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)),
        *(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
        *(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)),
    }


def names_read(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what a file reads of others, with its line: attributes, imports from our floors, and what it patches.

    So does a script that it has as a text. A name that the file writes is its own, but as an attribute of ``super()``.
    """
    own = names_written(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute() if node.attr not in own or ast.unparse(node.value) == "super()":
                yield node.lineno, node.attr
            case ast.ImportFrom() if (node.module or "").split(".")[0] in FLOORS:
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.Call() if ast.unparse(node.func).split(".")[-1] in PATCHES:
                yield from ((node.lineno, text.split(".")[-1]) for text in texts_of(node.args))
            case ast.Subscript():
                yield from ((node.lineno, text) for text in texts_of([node.slice]))
            case ast.Constant(value=str(text)) if "import " in text:
                yield from ((node.lineno, name) for script in scripts_in(text) for _, name in names_read(script))


def scripts_in(text: str) -> list[ast.Module]:
    """Return the script that a text is, if it is one."""
    try:
        return [ast.parse(textwrap.dedent(text))]
    except SyntaxError:
        return []


def texts_of(nodes: Iterable[ast.expr]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize(
    "text",
    [
        "from strategies.flower import _concealed",
        "from server_app import run\nrun._concealed()",
        "class Own(Grid):\n    def answer(self):\n        return self._concealed",
        "class Own(Grid):\n    def _concealed(self):\n        return super()._concealed()",
        "monkeypatch.setattr(run, '_concealed', None)",
        "monkeypatch.setattr('server_app.run._concealed', None)",
        "run.execute.__globals__['_concealed']",
        "SCRIPT = '''\nfrom server_app.run import _concealed\n'''",
    ],
)
def test_a_private_name_that_is_read_is_found(text: str) -> None:
    assert "_concealed" in {name for _, name in names_read(ast.parse(text))}


@pytest.mark.parametrize(
    "text",
    [
        "from os import _concealed",
        "class Own:\n    def __init__(self):\n        self._concealed = 1\n        print(self._concealed)",
        "suffix = '_concealed'",
    ],
)
def test_private_names_of_others_and_of_its_own_are_not(text: str) -> None:
    assert "_concealed" not in {name for _, name in names_read(ast.parse(text))}


def test_no_test_and_no_benchmark_reads_a_private_name() -> None:
    """It would break by a change that no user sees, and shows that a return value is missing."""
    ours = {
        name
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*.py")
        for name in names_written(ast.parse(path.read_text()))
        if is_private(name)
    }
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for folder in ("tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in names_read(ast.parse(path.read_text()))
        if name in ours
    ]
    assert not found
