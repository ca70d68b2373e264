"""Every command of every page is run by a test that is named here, or is carried out here as far as its start.

A command that needs what not every machine has says so in its page: `<!-- needs: a GPU -->` before the block.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import flwr
import numpy as np
import pytest
import torch
import typer
from flwr.cli.app import app as flower
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args as options_of_executor
from pages import PYTHON, ROOT, Command, commands, of_page
from PIL import Image

from disue.data import datasets, federation
from disue.data.datasets import DATASETS, Dataset, Examples
from disue.models import MODELS
from disue.nodes import NodeConfig
from disue.runs.reading import load_run
from disue_cli.main import app, main
from server_app.config import RunConfig
from server_app.run import preflight

RUN_BY = {
    "test": ".ci/run",
    "notebook": "tests/e2e/test_tutorial.py::test_the_tutorial_runs_in_three_minutes",
    "docs/DEPLOY.md": "tests/test_house.py::test_every_shell_block_about_deploying_is_run_by_a_test",
    "python -c": "tests/disue_cli/test_predict.py::test_the_readmes_drawing_is_an_image_that_can_be_predicted",
    "python -m disue_cli.config_table": "tests/test_house.py::test_the_table_of_keys_is_up_to_date",
    "python -m disue.wire.table": "tests/disue/test_fields.py::test_the_page_lists_all_fields",
    "python docs/draw_house.py": "tests/test_architecture.py::test_the_picture_is_drawn_from_the_imports",
    "python docker/demo_data.py": "tests/test_house.py::test_every_shell_block_about_deploying_is_run_by_a_test",
}
"""Labels of blocks, pages and beginnings of commands, and what runs them."""
OF_THE_SHELL = ("cd", "export", "mkdir", "cat", ".", "ls", "tail")
OF_COMPOSE = ("build", "config", "down", "exec", "logs", "ps", "pull", "run", "stop", "up")
OF_LIBRARIES = ("HOME", "OMP_NUM_THREADS", "PATH", "no_proxy", "http_proxy", "https_proxy")
"""Variables that the system, PyTorch and the standard library read."""
IN_CI = ("ruff", "mypy", "lint-imports", "pytest")
NEEDS = {
    "a GPU": r"--gpus-per-client (?!0(\s|$))|--device cuda",
    "a Ray cluster": r"RAY_ADDRESS=",
    "Docker": r"^docker ",
    "a SuperLink": r"disue run |flower-supernode .*--superlink|^flwr run \S+ [^-]",
    "Fashion-MNIST": r"fashion-mnist|benchmarks/robustness\.py",
}


class Started(Exception):
    """All that a command checks before it computes was in order."""


def _started(*_: object, **__: object) -> None:
    raise Started


def _of_equal_classes(examples: int) -> Examples:
    return Examples(
        torch.zeros(1, 1, 28, 28, dtype=torch.uint8).expand(examples, -1, -1, -1), torch.arange(examples) % 10
    )


def _like_fashion_mnist(_directory: Path | None) -> Dataset:
    names = tuple(map(str, range(10)))
    return Dataset("fashion-mnist", names, _of_equal_classes(60_000), _of_equal_classes(10_000), (0.3,), (0.3,))


@pytest.fixture(scope="module")
def _no_download() -> Iterator[None]:
    """Put blank images, as many as Fashion-MNIST has, in its place."""
    caches = (datasets.load_dataset, federation.federation_of)
    with DATASETS.scope({"fashion-mnist": _like_fashion_mnist}):
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def place(finished: Path, tmp_path: Path, _no_download: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what the pages' commands are given, in which nothing is computed."""
    monkeypatch.chdir(tmp_path)
    proxy = [f"srv/proxy/{i}.png" for i in range(12)]
    for name in ("three.png", "photo.png", "photos/1.png", "my-data/3/1.png", "hospital-c/7/1.png", *proxy):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 90).save(tmp_path / name)
    for name in ("scans.npz", "hospital-c.npz"):
        np.savez(tmp_path / name, x=np.zeros((2, 8, 8), np.float32), y=np.arange(2))
    np.savez(tmp_path / "pictures.npz", x=np.zeros((300, 8, 8), np.uint8), y=np.arange(300) % 3)
    for name in ("north", "south"):
        (tmp_path / "hospitals" / name).mkdir(parents=True)
    engines = ("engines.inline.run_inline", "engines.ray.run_ray")
    others = ("compare.run_cells", "executor.executor", "export.write_model", "run.copy_app")
    for started in (*engines, *(f"commands.{other}" for other in others)):
        monkeypatch.setattr(f"disue_cli.{started}", _started)
    return tmp_path


def _named_test(name: str) -> bool:
    path, _, function = name.partition("::")
    return (ROOT / path).is_file() and (not function or f"def {function}(" in (ROOT / path).read_text())


def _run_elsewhere(command: Command) -> str | None:
    line = " ".join(command.words)
    for key, test in RUN_BY.items():
        if key in command.labels or (command.whole and key == command.page and command.labels) or line.startswith(key):
            return test
    return None


def _make_unfinished(directory: Path) -> None:
    (directory / "summary.json").unlink()
    settings = directory / "config.toml"
    settings.write_text(settings.read_text().replace("num-server-rounds = 2\n", "num-server-rounds = 10\n"))


def _disue(command: Command, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = list(command.words)
    for word in words:
        if word.startswith("runs/") and words[words.index(word) - 1] != "--output" and not (place / word).exists():
            shutil.copytree(finished, place / word)
            if "--resume" in words:
                _make_unfinished(place / word)
    if "a GPU" in _needed(command):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises((SystemExit, Started)) as ended:
        main()
    assert ended.type is Started or not ended.value.code  # type: ignore[attr-defined]


def _parsed(group: object, words: tuple[str, ...]) -> None:
    """Check that a command line has a command, and only options that it knows; what it lacks is no fault."""
    command: click.Command = typer.main.get_command(group)  # type: ignore[arg-type]
    names, rest = [], list(words[1:])
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        names.append(rest[0])
        assert rest[0] in command.commands, f"there is no command {' '.join(names)}"
        command = command.commands[rest.pop(0)]
    if command.name == "executor" and rest:
        options_of_executor().parse_args(rest)
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, f"{words}: {sorted(known)}"


def _settings(words: tuple[str, ...], option: str) -> dict[str, bool | int | float | str]:
    texts = [words[i + 1] for i, word in enumerate(words) if word == option]
    return {key: value for text in texts for key, value in parse_config_args([text]).items()}


def _flwr(command: Command, place: Path) -> None:
    _parsed(flower, command.words)
    if command.words[1] != "run" or not command.whole:
        return
    values, nodes = _settings(command.words, "--run-config"), _settings(command.words, "--federation-config")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert values.keys() <= known.keys()
    here = {key: value.replace("/srv/", f"{place}/srv/") for key, value in values.items() if isinstance(value, str)}
    config = RunConfig.from_flower(values | here | {"output-dir": str(place / "run")})
    preflight(config, nodes.get("num-supernodes"))  # type: ignore[arg-type]


def _supernode(command: Command) -> None:
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    words = [word for word in command.words[1:] if word != "..."]
    if command.whole:
        _parse_args_run_supernode().parse_args(words)
    if values := _settings(command.words, "--node-config"):
        NodeConfig.from_flower(values)


def _benchmark(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *arguments: object) -> None:
        parse(parser, *arguments)  # type: ignore[call-overload]
        raise Started

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    words = ["7" if word == "N" else word for word in command.words[1:]]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # a script may set its own
    monkeypatch.syspath_prepend(str(ROOT))
    with MODELS.scope(), pytest.raises(Started):  # some have models of their own
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def _pip(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {extra for word in command.words for extra in re.findall(r"\.\[([^\]]+)\]", word)}
    assert {name for extra in wanted for name in extra.split(",")} <= project["optional-dependencies"].keys()
    known = {re.split(r"[\[<>=]", dependency)[0] for dependency in project["dependencies"]} | {"jupyterlab"}
    for word in command.words[2:]:
        assert word.startswith(("-", ".", "https://")) or word in known or (ROOT / word).is_file()


def _docker(command: Command) -> None:
    words = list(command.words[1:])
    assert words.pop(0) == "compose"
    files = []
    while words and words[0].startswith("-"):
        assert words[0] == "-f", f"an option of docker compose that nobody knows: {words[0]}"
        files.append(words[1])
        words = words[2:]
    assert all((ROOT / file).is_file() for file in files)
    assert not command.whole or (files and words)
    assert not words or words[0] in OF_COMPOSE, f"there is no docker compose {words[0]}"


@cache
def _text_of(directory: Path) -> str:
    """Return all code below a directory."""
    return "\n".join(path.read_text() for end in ("py", "sh", "yml") for path in sorted(directory.rglob(f"*.{end}")))


def _is_read(variable: str) -> bool:
    """Return whether the code, Flower or a library reads a variable of the environment, by its full name."""
    if variable in OF_LIBRARIES:
        return True
    if variable.startswith("FLWR_"):
        (flower,) = flwr.__path__
        return bool(re.search(rf"\b{variable}\b", _text_of(Path(flower))))
    found = rf"""environ(\.get\(|\[)"{variable}"|\$\{{{variable}\b"""
    return any(re.search(found, _text_of(ROOT / part)) for part in ("disue", "disue_cli", "docker"))


def _check_variables(command: Command) -> None:
    exported = command.words[1:] if command.words[:1] == ("export",) else ()
    for setting in (*command.settings, *exported):
        name = setting.partition("=")[0]
        assert _is_read(name), f"nobody reads {name}"


def check(command: Command, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry a command out as far as it computes nothing; fail where nobody knows how to."""
    program = command.words[0] if command.words else "export"
    _check_variables(command)
    if test := _run_elsewhere(command):
        assert _named_test(test), f"{test} runs this, and is not there"
    elif program == "disue" and command.whole:
        _disue(command, place, finished, monkeypatch)
    elif program == "disue":
        _parsed(app, tuple(word for word in command.words if word != "..."))
    elif program == "flwr":
        _flwr(command, place)
    elif program == "flower-supernode":
        _supernode(command)
    elif program == "python" and command.words[1].startswith("benchmarks/"):
        _benchmark(command, monkeypatch)
    elif program == "pip":
        _pip(command)
    elif program in IN_CI:
        assert re.search(rf"\b{program}\b", (ROOT / ".ci" / "run").read_text())
    elif program == "docker":
        _docker(command)
    elif program == "tensorboard":
        assert (place / "runs").is_dir() or command.words[1:] == ("--logdir", "runs")
    else:
        assert program in OF_THE_SHELL or command.words[:3] == ("python", "-m", "venv"), f"nobody runs {command}"


def _needed(command: Command) -> set[str]:
    line = " ".join((*command.settings, *command.words))
    return {need for need, sign in NEEDS.items() if re.search(sign, line)}


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_of_a_page_can_be_given(
    command: Command, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(command, place, finished, monkeypatch)


def test_a_block_says_what_its_commands_need_that_not_every_machine_has() -> None:
    silent = [
        f"{command}: {need}"
        for command in commands()
        if command.whole and command.page.endswith(".md") and not (command.page in RUN_BY and command.labels)
        for need in _needed(command)
        if need not in command.needs
    ]
    assert not silent, "add <!-- needs: ... --> before the block"


@pytest.mark.parametrize(
    "line",
    [
        "disue simulate --clients 1000 --set clients-per-node=100",  # digits has too few examples
        "disue simulate --set no-such-key=1",
        "disue simulate --no-such-option",
        "disue compare --methods nope --output here",
        "disue predict runs/first missing.png",
        "flwr run . --run-config 'num-server-round=5'",
        "flwr run . --run-config 'num-server-rounds=0'",
        "flower-supernode --insecure --superlink 10.0.0.5:9092 --node-config 'nam=\"a\"'",
        "python benchmarks/regression.py --no-such-option",
        "pip install -e '.[nope]'",
        "curl https://example.org",
        "RAY_ADRESS=head:6379 disue simulate",
        "export FLWR_TELEMETRY_ENABLE=0",
        "docker compose -f docker/compose.yml upp --build",
        "docker compose -f docker/compose.yml",
        "docker compose -f docker/no-such.yml up",
        "docker compose up",
        "docker run disue",
        "`docker compose -f docker/compose.yml start-all`",
        "`disue simulate --no-such-option`",
        "`disue nope --help`",
        "`flwr nope`",
    ],
)
def test_a_command_that_fails_is_found(
    line: str, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = of_page("page.md", line if line.startswith("`") else f"```bash\n{line}\n```\n")
    with pytest.raises(BaseException) as caught:  # noqa: PT011 (also SystemExit, of argparse)
        check(command, place, finished, monkeypatch)
    assert not isinstance(caught.value, Started | KeyboardInterrupt)


def test_a_command_is_found_wherever_it_stands() -> None:
    page = (
        "Say `disue watch DIR`.\n<!-- label -->\n<!-- needs: a GPU -->\n```bash\n"
        "A=1 disue simulate --set a=b \\\n  --clients 2 > log && ls  # now\n```\n"
    )
    block = [command for command in of_page("page.md", page) if command.whole]
    assert [shlex.join(command.words) for command in block] == ["disue simulate --set a=b --clients 2", "ls"]
    assert {(command.labels, command.needs) for command in block} == {(("label",), "a GPU")}
    assert block[0].settings == ("A=1",)
    assert [command.words for command in of_page("page.md", page) if not command.whole] == [("disue", "watch", "DIR")]
    pages = {command.page for command in commands()}
    assert {"README.md", "docs/RESULTS.md", "docs/tutorial.ipynb", "disue_cli/main.py", "docs/PRIVACY.md"} <= pages
    assert len(commands()) > 80


@pytest.mark.parametrize("page", ["README.md", *(path.name for path in (ROOT / "docs").glob("*.md")), "MODEL_CARD.md"])
def test_the_python_of_a_page_runs(page: str, place: Path, finished: Path) -> None:
    shutil.copytree(finished, place / "runs" / "first")
    experts = place / "runs" / "first" / "experts"
    shutil.copy(experts / "expert-0.safetensors", experts / "expert-2.safetensors")
    text = next(path for path in (ROOT / page, ROOT / "docs" / page, finished / page) if path.is_file()).read_text()
    blocks = PYTHON.findall(text)
    assert blocks or page not in ("README.md", "MODEL_CARD.md")
    for block in blocks:
        exec(block.replace('"DIR"', '"runs/first"'), {"x": torch.zeros(2, 8, 8)})


def test_the_tutorials_digits_are_in_no_clients_data(finished: Path) -> None:
    """The cell that takes images for the models takes none that a client has, or that teaches the universal expert."""
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    (cell,) = (text for cell in notebook["cells"] if "images, labels =" in (text := "".join(cell["source"])))
    run = load_run(finished)
    names: dict[str, Any] = {"run": run}
    exec(cell, names)
    divided = federation.build_federation(run.config, len(run.clusters))
    parts = [divided.dataset.train[np.concatenate([*divided.train_parts, divided.proxy_indices])]]
    parts.append(divided.dataset.test[np.concatenate(divided.test_parts)])
    taken = {part.x[i].numpy().tobytes() for part in parts for i in range(len(part))}
    assert len(taken) > 1000
    for pixels in (names["images"], names["pixels"]):
        assert not taken & {(image * 16).astype(np.uint8).tobytes() for image in pixels}
    assert sorted(names["labels"]) == list(range(10))
