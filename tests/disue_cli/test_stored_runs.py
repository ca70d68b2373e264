"""Run directories of all formats, as they were written: they are loaded, reported, predicted with, and go on.

One of a format to come is refused, whatever else is in it.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import CHARTS

from disue import load_run
from disue.errors import DataError
from disue.files import RUN_FORMAT, run_settings
from disue_cli.compare.cells import Cell
from disue_cli.engines.inline import run_inline
from server_app.config import RunConfig
from server_app.report import read_run, write_report
from server_app.resume import resumed_config

STORED = Path(__file__).parents[1] / "stored_runs"
CLIENTS = 4
Said = Callable[..., tuple[str, str]]


Refused = Callable[..., str]


@pytest.fixture(params=sorted(path.name for path in STORED.glob("format-*")))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a stored folder."""
    return Path(shutil.copytree(STORED / request.param, tmp_path / "stored"))


def test_a_run_of_every_format_is_stored() -> None:
    """Of the first one a run from before directories had a number."""
    found = [run_settings((path / "run" / "config.toml").read_text()) for path in sorted(STORED.glob("format-*"))]
    assert [settings.get("format", 1) for settings in found] == list(range(1, RUN_FORMAT + 1))
    assert "format" not in found[0]


def test_a_run_writes_its_format_first(run) -> None:  # type: ignore[no-untyped-def]
    text = (run(clients=2).directory / "config.toml").read_text()
    assert text.startswith(f"format = {RUN_FORMAT}\n\n[")


@pytest.fixture(params=[RUN_FORMAT + 1, 10**6])
def newer(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A directory of which only the format is known, and what is said of it."""
    path = tmp_path / "newer" / "config.toml"
    path.parent.mkdir()
    path.write_text(f"format = {request.param}\n")
    said = (
        f"'{path}': format: got {request.param}; this version of DisUE reads run directories up to format {RUN_FORMAT}"
    )
    return path.parent, said


@pytest.mark.parametrize(
    "words",
    [
        ["report", "{run}"],
        ["report", "{run}", "{run}"],
        ["watch", "{run}"],
        ["predict", "{run}", "{run}/x.png"],
        ["export", "{run}", "--format", "torch"],
        ["assign", "{run}", "{run}/x.npz"],
        ["simulate", "--engine", "inline", "--resume", "{run}"],
        ["run", "disue", "--set", "resume-from={run}"],
    ],
    ids=" ".join,
)
def test_a_newer_one_is_refused_by_every_command(newer: tuple[Path, str], words: list[str], refused: Refused) -> None:
    directory, said = newer
    assert said in refused(*(word.replace("{run}", str(directory)) for word in words))
    assert [path.name for path in directory.iterdir()] == ["config.toml"]


def test_a_newer_one_is_refused_in_python(newer: tuple[Path, str]) -> None:
    directory, said = newer
    for read in (load_run, read_run):
        with pytest.raises(DataError, match=re.escape(said)):
            read(directory)


def test_a_newer_one_is_refused_as_a_baseline(stored: Path, newer: tuple[Path, str]) -> None:
    directory, said = newer
    (directory / "summary.json").write_text('{"status": ["of another form"]}')
    place = stored / "run" / "baselines" / "fedavg"
    shutil.copytree(directory, place)
    with pytest.raises(DataError, match=re.escape(said.replace(str(directory), str(place)))):
        read_run(stored / "run")


def test_a_newer_one_is_refused_in_a_comparison(newer: tuple[Path, str]) -> None:
    directory, said = newer
    cell = Cell("digits", "iid", "fedavg", RunConfig(), 2, directory)
    shutil.copytree(directory, cell.directory)
    with pytest.raises(DataError, match=re.escape(said.replace(str(directory), str(cell.directory)))):
        cell.summary()


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "true", "'1'", "[1]"])
def test_a_format_that_is_no_number_is_damage(stored: Path, number: str) -> None:
    path = stored / "run" / "config.toml"
    unnumbered = re.sub(r"^format = .*\n", "", path.read_text())
    path.write_text(f"format = {number}\n{unnumbered}")
    with pytest.raises(DataError, match=r"config.toml' is damaged \(format is .*, not a whole number from 1\)"):
        load_run(stored / "run")


def test_one_that_says_its_number_is_read_as_one_from_before_numbers(tmp_path: Path) -> None:
    stored = Path(shutil.copytree(STORED / "format-1", tmp_path / "stored"))
    before = load_run(stored / "run")
    path = stored / "run" / "config.toml"
    path.write_text("format = 1\n" + path.read_text())
    after = load_run(stored / "run")
    assert (after.config, after.task, after.experts) == (before.config, before.task, before.experts)
    assert after.format == before.format == 1


def expected(stored: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stored / "expected.json").read_text())
    return found


def test_it_is_loaded(stored: Path) -> None:
    run = load_run(stored / "run")
    assert (run.universals, run.experts) == (["universal"], ["0", "1"])
    assert run.clusters == {"client-0": 0, "client-1": 1, "client-2": 0, "client-3": 1}
    assert (run.config.method, run.config.num_server_rounds, run.task.shape) == ("disue", 2, (1, 8, 8))
    assert run.summary["status"] == "completed"


def test_its_report_has_every_chart_and_every_client(stored: Path) -> None:
    page = write_report(stored / "run").read_text()
    assert {chart for chart in CHARTS if f'id="figure-{chart}"' not in page} == set()
    record = read_run(stored / "run")
    assert [row["round"] for row in record.rows] == [1, 2]
    assert len(record.clients) == CLIENTS
    assert all(client.name in page for client in record.clients)


def test_its_models_say_what_they_said(stored: Path, said: Said) -> None:
    for model, predictions in expected(stored)["predictions"].items():
        out, _ = said("predict", stored / "run", stored / "images.npz", "--expert", model, "--format", "json")
        rows = json.loads(out)
        assert [[row["expert"], row["classes"][0]["class"]] for row in rows] == [own[:2] for own in predictions]
        shares = [row["classes"][0]["probability"] for row in rows]
        assert shares == pytest.approx([own[2] for own in predictions], abs=1e-5)


def test_a_client_joins_the_cluster_that_it_joined(stored: Path, said: Said) -> None:
    out, _ = said("assign", stored / "run", stored / "images.npz")
    assert out.startswith(f"8 labelled images: cluster {expected(stored)['cluster']}, by ")


def test_its_models_are_exported(stored: Path, said: Said) -> None:
    said("export", stored / "run", "--expert", "all", "--format", "torch")
    names = {path.name for path in (stored / "run" / "export").iterdir()}
    assert names == {"universal.pt2", "expert-0.pt2", "expert-1.pt2"}


def test_it_is_shown(stored: Path, said: Said) -> None:
    out, _ = said("watch", stored / "run")
    assert [line[:9] for line in out.splitlines() if "universal" in line] == ["round 1/2", "round 2/2"]


def went_on(directory: Path) -> str:
    """Return how a run ended that was to go on up to round 3, or why it did not go on."""
    try:
        summary = run_inline(resumed_config({"resume-from": str(directory), "num-server-rounds": 3}), CLIENTS)
    except DataError as error:
        return str(error)
    return f"{summary['status']} after round {summary['rounds']}"


def test_it_goes_on_or_says_why_not(stored: Path) -> None:
    """A checkpoint serves the version that wrote it; another may know it no more."""
    assert re.search("^completed after round 3$|was written by another version of disue", went_on(stored / "run"))
