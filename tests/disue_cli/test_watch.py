"""A run as it is seen while it goes on: progress file, lines in a pipe, panel in a terminal, `disue watch`."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Disue
from rich.console import Console
from rich.live import Live
from synthetic import write_run

from client_app.app import app as client_app
from disue.errors import DataError
from disue.files import write_passing
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from disue_cli.views import LiveView, PlainView, view_of
from disue_cli.watching import Sight, followed, look
from server_app.callbacks.progress import Progress
from server_app.config import RunConfig
from server_app.run import execute
from server_app.run_lock import exclusive

ROW: dict[str, Any] = {
    "round": 1,
    "universal_accuracy": 0.5,
    "expert_accuracy": 0.75,
    "average_accuracy": 0.25,
    "num_clusters": 2,
    "ari": 1.0,
    "clients_ok": 5,
    "clients_failed": 1,
    "clients_rejected": 0,
    "seconds_local": 4.0,
    "seconds_clustering": 1.0,
    "seconds_distillation": 2.0,
    "seconds_evaluation": 3.0,
}
UNDER_WAY = {
    "round": 2,
    "rounds": 3,
    "phase": "clustering",
    "done": 0,
    "of": 0,
    "since": 100.0,
    "finished": {"local": {"done": 4, "of": 6, "seconds": 3.5}},
}


def test_the_progress_file_says_where_a_round_is(tmp_path: Path) -> None:
    now = 10.0
    progress = Progress(tmp_path, rounds=5, clock=lambda: now)

    def state() -> dict[str, Any]:
        return json.loads((tmp_path / "progress.json").read_text())

    progress.ask(1, "local", 8)
    now = 11.0
    progress.answered(3)
    assert state() == {"round": 1, "rounds": 5, "phase": "local", "done": 3, "of": 8, "since": 10.0, "finished": {}}
    now = 12.5
    progress.answered(5)
    progress.phase(1, "clustering")
    progress.phase(1, "clustering")
    assert state()["finished"] == {"local": {"done": 8, "of": 8, "seconds": 2.5}}
    assert (state()["phase"], state()["since"]) == ("clustering", 12.5)
    progress.ask(1, "evaluation", 4)
    assert state()["finished"].keys() == {"local", "clustering"}
    now = 13.0
    progress.phase(1, "local")
    now = 13.25
    progress.phase(1, "distillation")
    assert state()["finished"]["local"] == {"done": 8, "of": 8, "seconds": 2.75}
    assert state()["finished"]["evaluation"] == {"done": 0, "of": 4, "seconds": 0.5}
    progress.ask(2, "local", 8)
    assert (state()["round"], state()["finished"]) == (2, {})


def test_a_run_passes_through_its_phases_and_leaves_no_progress_file(tmp_path: Path) -> None:
    config = RunConfig(
        model="mlp", num_server_rounds=2, distill_steps=5, output_dir=str(tmp_path / "run"), report=False
    )
    grid = InlineGrid(client_app, config.to_flower(), simulated_nodes(5))
    path = tmp_path / "run" / "progress.json"
    seen: list[tuple[int, str, int]] = []
    pull = grid.pull_messages

    def looking(ids):  # type: ignore[no-untyped-def]
        if path.exists():
            state = json.loads(path.read_text())
            seen.append((state["round"], state["phase"], state["of"]))
        return pull(ids)

    grid.pull_messages = looking  # type: ignore[method-assign]
    rows: list[dict[str, Any]] = []

    def after(row: dict[str, Any]) -> None:
        state = json.loads(path.read_text())
        assert state["finished"].keys() >= {"local", "clustering", "distillation"}
        assert {key: state["finished"]["local"][key] for key in ("done", "of")} == {"done": 5, "of": 5}
        rows.append(row)

    execute(config, grid, after)
    assert len(rows) == 2
    asked = [entry for entry in dict.fromkeys(seen) if entry[2]]
    assert asked == [(1, "local", 5), (1, "evaluation", 5), (2, "local", 5), (2, "evaluation", 5)]
    assert not path.exists()
    assert grid.pull_messages is looking


def test_who_sees_the_progress_file_finds_the_rows(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    rows: list[int] = []

    def looking(path: Path, content: str) -> None:
        rows.append(len((path.parent / "metrics.jsonl").read_text().splitlines()))
        write_passing(path, content)

    monkeypatch.setattr("server_app.callbacks.progress.write_passing", looking)
    run(clients=2, method="fedavg")
    assert set(rows) == {0, 1}


def test_epsilon_is_shown_where_there_is_one() -> None:
    private = ROW | {"epsilon": 113.26, "delta": 1e-5, "releases": 31}
    assert "  epsilon 113  " in lines_of(Sight(rows=[private], rounds=1))[-1]
    assert "epsilon" not in lines_of(Sight(rows=[ROW], rounds=1))[-1]
    panel = LiveView(Live(), "run").panel(Sight(rows=[private], rounds=1))
    out = io.StringIO()
    Console(file=out, width=100).print(panel)
    assert "epsilon 113  (31 releases)" in out.getvalue()


def lines_of(*sights: Sight) -> list[str]:
    out = io.StringIO()
    view = PlainView(Console(file=out, width=200))
    for sight in sights:
        view.show(sight)
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_per_phase_once() -> None:
    first = Sight(rounds=3, progress=UNDER_WAY | {"round": 1})
    second = Sight(rows=[ROW], rounds=3, sizes={0: 2, 1: 4})
    third = Sight(rows=[ROW], rounds=3, progress=UNDER_WAY)
    assert lines_of(first, first, second, third, third) == [
        "round 1/3  local training  4 of 6 clients  3.5 s",
        "round 1/3  clustering  1.0 s",
        "round 1/3  distillation  2.0 s",
        "round 1/3  universal 0.500  expert 0.750  average 0.250  2 clusters (4, 2)  ari 1.00  10.0 s"
        "  1 of 6 clients missing",
        "round 2/3  local training  4 of 6 clients  3.5 s",
    ]


def test_rounds_that_were_over_before_have_no_lines() -> None:
    out = io.StringIO()
    second = Sight(rows=[ROW, ROW | {"round": 2}], rounds=3)
    PlainView(Console(file=out, width=200), rounds=1).show(second)
    assert {line[:9] for line in out.getvalue().splitlines()} == {"round 2/3"}


def test_a_phase_that_took_no_time_has_no_line() -> None:
    row = ROW | {"seconds_clustering": 0.0, "seconds_distillation": 0.0}
    assert len(lines_of(Sight(rows=[row], rounds=1))) == 2


def test_the_time_left_is_that_of_rounds_like_the_last() -> None:
    assert Sight(rounds=3).seconds_left is None
    assert Sight(rows=[ROW], rounds=3).seconds_left == 20.0
    # 3.5 s of local training are over, and clustering began 2 s ago.
    assert Sight(rows=[ROW], rounds=3, progress=UNDER_WAY, time=102.0).seconds_left == 14.5


def test_a_pipe_gets_lines_also_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cell of a notebook, or in continuous integration."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(file=io.StringIO())
    assert console.is_terminal
    with view_of(console, "a run") as view:
        assert isinstance(view, PlainView)


def test_a_terminal_gets_a_panel_with_everything() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=90)
    progress = UNDER_WAY | {"phase": "local", "done": 3, "of": 6, "finished": {}}
    with Live(console=console, auto_refresh=False) as live:
        LiveView(live, "[my] run").show(Sight([ROW], progress, {0: 2, 1: 4}, {}, 3, 100.0))
    text = out.getvalue()
    for word in (
        "[my] run",
        "2 of 3",
        "local training",
        "3 of 6 clients",
        "0.500",
        "0.750",
        "2 clusters (4, 2)",
        "20 s",
    ):
        assert word in text


def test_a_run_inside_is_followed_to_its_last_round(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = io.StringIO()
    with followed(tmp_path / "run-1", PlainView(Console(file=out, width=200)), 2):
        run(clients=4, num_clusters=2)
    lines = out.getvalue().splitlines()
    assert len(lines) == 8
    assert [line[:9] for line in lines] == ["round 1/2"] * 4 + ["round 2/2"] * 4
    assert "local training  4 of 4 clients" in lines[0]


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("stopped", 0), ("failed", 1)])
def test_watch_follows_a_run_and_ends_with_it(tmp_path: Path, status: str, code: int) -> None:
    directory = write_run(tmp_path / "run", rounds=3)
    rows = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "summary.json").unlink()
    (directory / "metrics.jsonl").write_text(rows[0])
    process = Disue("watch", str(directory), cwd=tmp_path)
    first: list[str] = []
    reader = threading.Thread(target=lambda: first.extend(process.stdout.readline() for _ in range(4)))
    reader.start()
    reader.join(timeout=60)
    assert len(first) == 4
    assert process.poll() is None
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(rows[1] + rows[2][:20])
        file.flush()
        time.sleep(0.5)
        file.write(rows[2][20:])
    (directory / "summary.json").write_text(json.dumps({"status": status, "error": "too few clients"}))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert [line for line in out.splitlines() if "universal" in line][-1].startswith("round 3/3  universal 0.620")
    assert err == ("" if code == 0 else "disue: the run ended early: too few clients\n")
    how = f"too few clients; to go on with it: disue simulate --resume {directory}"
    assert (out.splitlines()[-1] == how) == (status == "stopped")


def test_watch_of_a_run_that_was_killed_ends_and_says_how_to_go_on(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", rounds=3)
    (directory / "summary.json").unlink()
    with exclusive(directory):
        process = Disue("watch", str(directory), cwd=tmp_path)
        assert any(line.startswith("round 3/3  universal") for line in process.stdout)
        time.sleep(0.5)
        assert process.poll() is None
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == f"disue: the run was killed after round 3; to go on with it: disue simulate --resume {directory}\n"


def test_watch_wants_a_run(tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    said = refused("watch", str(tmp_path))
    assert said.startswith(f"disue: '{tmp_path}': there is no run here (config.toml is missing)")
    (tmp_path / "metrics.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="metrics.jsonl' is damaged"):
        look(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("progress.json", "[1]"), ("progress.json", '{"round": 1}'), ("membership.csv", "round,client,cluster\nx,y,z\n")],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}' is damaged"):
        look(tmp_path)


def test_rounds_of_another_version_are_shown() -> None:
    said = io.StringIO()
    PlainView(Console(file=said, width=200)).show(Sight(rows=[{"round": 1, "seconds_local": None}], rounds=1))
    assert "round 1/1  universal -  expert -" in said.getvalue()
