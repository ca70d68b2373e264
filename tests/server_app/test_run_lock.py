"""Who writes in a run directory holds it, and has looked at it while it held it: no run is lost to another."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from common import FAST
from flwr.app import Message, MessageType
from resuming import left_by

from client_app.app import app as client_app
from disue.errors import ConfigError, DataError
from disue_cli.engines.inline import InlineGrid, run_inline, simulated_nodes
from server_app import run as server_run
from server_app.callbacks import report_data
from server_app.callbacks.checkpoint import Checkpoints
from server_app.config import RunConfig
from server_app.report import write_report
from server_app.report.reading import read_run
from server_app.resume import resumed_config
from server_app.run import execute
from server_app.run_directory import check_directory
from server_app.run_lock import LOCK, exclusive, is_held
from server_app.stopping import STOP, ask_to_stop

SMALL: dict[str, Any] = FAST | {
    "method": "fedavg",
    "num-server-rounds": 3,
    "train-examples": 20,
    "test-examples": 10,
    "global-test-size": 20,
}
CLIENTS = 2


def config_for(directory: Path, **values: Any) -> RunConfig:
    return RunConfig.from_flower(SMALL | values | {"output-dir": str(directory)})


def go_on(directory: Path, **values: Any) -> dict[str, Any]:
    return run_inline(resumed_config({"resume-from": str(directory), **values}), CLIENTS)


def stopped(directory: Path, after: int = 1) -> Path:
    run_inline(config_for(directory), CLIENTS, lambda row: row["round"] == after and ask_to_stop(directory))
    return directory


class Meanwhile(InlineGrid):
    """Something is done once as a run waits for its clients: it has looked at its directory, and does not hold it."""

    def __init__(self, config: RunConfig, act: Callable[[], object]) -> None:
        super().__init__(client_app, config.to_flower(), simulated_nodes(CLIENTS))
        self.acts = [act]

    def get_node_ids(self) -> list[int]:
        while self.acts:
            self.acts.pop()()
        return super().get_node_ids()


def execute_while(config: RunConfig, act: Callable[[], object]) -> dict[str, Any]:
    return execute(config, Meanwhile(config, act))


def resumed(directory: Path) -> RunConfig:
    return resumed_config({"resume-from": str(directory)})


def everything_in(directory: Path) -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_run_that_was_completed_while_another_waited_to_go_on_with_it_stays(tmp_path: Path) -> None:
    directory, kept = stopped(tmp_path / "run"), {}

    def complete() -> None:
        assert go_on(directory)["status"] == "completed"
        kept.update(everything_in(directory))

    with pytest.raises(ConfigError, match="resume-from: another process went on with the run in .* is another"):
        execute_while(resumed(directory), complete)
    assert everything_in(directory) == kept


@pytest.mark.parametrize("act", ["a round more", "another config", "an extended run"])
def test_whatever_another_process_changed_is_seen(tmp_path: Path, act: str) -> None:
    directory = stopped(tmp_path / "run")
    acts: dict[str, Callable[[], object]] = {
        "a round more": lambda: run_inline(resumed(directory), CLIENTS, lambda row: ask_to_stop(directory)),
        "another config": lambda: (directory / "config.toml").write_text(
            (directory / "config.toml").read_text().replace("round-timeout = 600.0", "round-timeout = 601.0")
        ),
        "an extended run": lambda: go_on(directory, **{"num-server-rounds": 4}),
    }
    with pytest.raises(ConfigError, match="resume-from: another process went on"):
        execute_while(resumed(directory), acts[act])


def test_of_two_runs_with_one_directory_the_first_stays(tmp_path: Path) -> None:
    directory, kept = tmp_path / "run", {}

    def first() -> None:
        run_inline(config_for(directory, seed=1), CLIENTS)
        kept.update(everything_in(directory))

    with pytest.raises(ConfigError, match="output-dir: '.*' is not empty"):
        execute_while(config_for(directory, seed=2), first)
    assert everything_in(directory) == kept


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_that_begin_at_once_one_ends_well_and_the_other_says_why(tmp_path: Path, begun: bool) -> None:
    """In two threads, which hold it against each other as two processes do.

    Each draws its first model alone: threads, and not processes, share what PyTorch draws from.
    """
    run_inline(config_for(tmp_path / "alone"), CLIENTS)
    directory, both, drawing = tmp_path / "run", threading.Barrier(2), threading.Lock()
    if begun:
        stopped(directory)
    ends: list[object] = []

    def together() -> None:
        both.wait(10)
        drawing.acquire()

    class Drawn(Meanwhile):
        """The first model is drawn when somebody is to train."""

        drawn = False

        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            sent = list(messages)
            if not self.drawn and any(message.metadata.message_type == MessageType.TRAIN for message in sent):
                self.drawn = True
                drawing.release()
            return super().push_messages(sent)

    def carry_out() -> None:
        config = resumed(directory) if begun else config_for(directory)
        try:
            ends.append(execute(config, Drawn(config, together))["status"])
        except ConfigError as error:
            drawing.release()
            ends.append(error)

    threads = [threading.Thread(target=carry_out) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(end).__name__ for end in ends) == ["ConfigError", "str"]
    assert "completed" in ends
    key = "resume-from: " if begun else "output-dir: "
    assert next(str(end) for end in ends if end != "completed").startswith(key)
    assert left_by(directory) == left_by(tmp_path / "alone")


def test_of_many_that_look_at_a_missing_directory_at_once_none_takes_it_from_another(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(check_directory, [tmp_path / "above" / "run"] * 400)) == {None}
    assert not list(tmp_path.iterdir())


def test_a_directory_without_a_name_of_its_own_is_chosen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named after the time, which goes on."""
    names = iter([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    real = server_run.default_directory
    monkeypatch.setattr(
        server_run, "default_directory", lambda config: real(config) if config.output_dir else next(names)
    )
    run_inline(RunConfig.from_flower(SMALL), CLIENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_report_of_a_run_that_goes_on_disturbs_nothing(tmp_path: Path) -> None:
    run_inline(config_for(tmp_path / "alone", report=True), CLIENTS)
    directory, errors = tmp_path / "run", []
    over = threading.Event()

    def report() -> None:
        while not over.is_set():
            try:
                write_report(directory)
            except DataError as error:
                errors.append(str(error))

    threads: list[threading.Thread] = []

    def begin(row: dict[str, Any]) -> None:
        if not threads:
            threads.append(threading.Thread(target=report))
            threads[0].start()

    summary = run_inline(config_for(directory, report=True), CLIENTS, begin)
    over.set()
    threads[0].join()
    assert (summary["status"], errors) == ("completed", [])
    assert left_by(directory) == left_by(tmp_path / "alone")
    assert not list(directory.rglob("*.part"))


def test_a_report_between_two_files_of_a_run_finds_them_in_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, write = tmp_path / "run", report_data.write_whole
    seen: dict[str, set[str]] = {}

    def write_and_look(path: Path, content: Any) -> None:
        write(path, content)
        if path.name != report_data.MEMBERSHIP:
            seen[path.name] = set(read_run(directory).arrays)

    monkeypatch.setattr(report_data, "write_whole", write_and_look)
    run_inline(config_for(directory), CLIENTS)
    assert seen == {report_data.NAMES: set(), report_data.TENSORS: {"labels", "confusion"}}


# --- what stands in the place of a file ----------------------------------------------------------------


def a_link(path: Path) -> None:
    path.symlink_to(path.parent.parent.parent / "precious")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent.parent.parent / "made")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


IN_PLACES = [a_link, a_link_to_nothing, a_pipe, a_folder]


def everything_but(directory: Path, tmp_path: Path) -> dict[str, bytes]:
    return {path: content for path, content in everything_in(tmp_path).items() if str(directory) not in path}


@pytest.mark.parametrize("put", IN_PLACES)
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, put: Callable[[Path], None]) -> None:
    directory = stopped(tmp_path / "runs" / "run")
    (tmp_path / "runs" / "precious").write_text("mine")
    (directory / LOCK).unlink()
    put(directory / LOCK)
    before = everything_in(tmp_path)
    assert is_held(directory) is None
    assert not ask_to_stop(directory)
    with pytest.raises(DataError, match=r"checkpoint/lock' is (a link|no file); remove it"):
        go_on(directory)
    assert everything_in(tmp_path) == before
    with pytest.raises(ConfigError, match="is not empty"):  # nor is it what a killed process leaves
        run_inline(config_for(directory), CLIENTS)


def test_a_folder_of_locks_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="checkpoint' leads out of the run directory"), exclusive(tmp_path / "run"):
        pass
    with pytest.raises(ConfigError, match="is not empty"):
        run_inline(config_for(tmp_path / "run"), CLIENTS)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nobody_asks_or_stops_through_a_folder_that_leads_elsewhere(tmp_path: Path) -> None:
    """Where somebody holds another run, by which it would be stopped."""
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "another"):
        (tmp_path / "run" / "checkpoint").symlink_to(tmp_path / "another" / "checkpoint")
        before = everything_in(tmp_path / "another")
        assert is_held(tmp_path / "run") is None
        assert not ask_to_stop(tmp_path / "run")
        assert everything_in(tmp_path / "another") == before


def test_a_folder_that_leads_elsewhere_while_a_run_goes_on_ends_it(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("round-000001-mine.safetensors", STOP.name):
        (elsewhere / name).write_text("mine")
    before = everything_in(elsewhere)

    def swap(row: dict[str, Any]) -> None:
        (directory / "checkpoint").rename(tmp_path / "was")
        (directory / "checkpoint").symlink_to(elsewhere)

    with pytest.raises(DataError, match="checkpoint' leads out of the run directory"):
        run_inline(config_for(directory), CLIENTS, swap)
    assert everything_in(elsewhere) == before


@pytest.mark.parametrize("put", IN_PLACES)
def test_a_wish_to_stop_is_not_written_elsewhere(tmp_path: Path, put: Callable[[Path], None]) -> None:
    directory = tmp_path / "runs" / "run"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").write_text("mine")
    with exclusive(directory):
        put(directory / STOP)
        before = everything_in(tmp_path)
        assert ask_to_stop(directory)
    assert everything_in(tmp_path) == before


ENDS = ("summary.json", "clients.csv", "universal.safetensors", "portrait.json", "MODEL_CARD.md", "report.html")
WRITTEN = (*ENDS, "config.toml", "metrics.jsonl", "membership.csv", "progress.json", "experts/expert-0.safetensors")


@pytest.mark.parametrize("hard", [False, True], ids=["links", "hard links"])
def test_files_behind_links_stay_as_they_are(tmp_path: Path, hard: bool) -> None:
    """Of a run that goes on, and while it does: the metrics are added to."""
    run_inline(config_for(tmp_path / "alone", report=True), CLIENTS)
    directory, outside = tmp_path / "run", tmp_path / "outside"
    run_inline(config_for(directory, report=True), CLIENTS, lambda row: row["round"] == 1 and ask_to_stop(directory))
    outside.mkdir()

    def move_out(path: Path) -> None:
        target = outside / path.name
        content = path.read_bytes() if path.exists() else b"mine"
        path.unlink(missing_ok=True)
        target.write_bytes(content)
        path.hardlink_to(target) if hard else path.symlink_to(target)

    for name in WRITTEN:
        (directory / name).parent.mkdir(exist_ok=True)
        move_out(directory / name)
    before = everything_in(outside)
    run_inline(resumed(directory), CLIENTS)
    assert everything_in(outside) == before
    left, alone = left_by(directory), left_by(tmp_path / "alone")
    assert {name: left[name] for name in alone} == alone


@pytest.mark.parametrize("name", ENDS)
def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path, name: str) -> None:
    directory = stopped(tmp_path / "run")
    (directory / name).unlink(missing_ok=True)
    (directory / name).mkdir()
    with pytest.raises(DataError, match=f"{name}' (is no file; remove it|cannot be read)"):
        go_on(directory)
    (directory / name).rmdir()
    assert go_on(directory)["status"] == "completed"


@pytest.mark.parametrize("put", [a_link, a_link_to_nothing, a_pipe, a_folder])
def test_what_is_put_there_while_a_run_goes_on_ends_it_and_is_not_written_to(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    directory = tmp_path / "runs" / "run"
    (tmp_path / "runs").mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")

    def swap(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            (directory / "metrics.jsonl").unlink()
            put(directory / "metrics.jsonl")

    before = everything_but(directory, tmp_path)
    with pytest.raises(DataError, match=r"metrics.jsonl' is (a link|no file); remove it"):
        run_inline(config_for(directory), CLIENTS, swap)
    assert everything_but(directory, tmp_path) == before
    saved = Checkpoints(directory).load()
    assert saved is not None
    assert saved.round == 1


def test_a_file_with_a_second_name_is_added_to_under_its_own(tmp_path: Path) -> None:
    """As a backup by hard links makes one."""
    directory, backup = tmp_path / "run", tmp_path / "backup.jsonl"

    def back_up(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            backup.hardlink_to(directory / "metrics.jsonl")

    run_inline(config_for(directory), CLIENTS, back_up)
    assert len(backup.read_text().splitlines()) == 1
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 3


def test_execute_says_the_same_without_the_command(tmp_path: Path) -> None:
    """The checks are where the lock is, not in the command."""
    directory = stopped(tmp_path / "run")
    config = resumed(directory)
    with exclusive(directory), pytest.raises(ConfigError, match="is in use"):
        execute(config, None)  # type: ignore[arg-type]
