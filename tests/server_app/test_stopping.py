"""A run that is asked to end does so after its round, and goes on as if it had not been."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST
from resuming import left_by

from disue.cli.simulate import run_inline
from disue.config import RunConfig
from server_app.hold import exclusive
from server_app.resume import resumed_config
from server_app.stopping import STOP, ask_to_stop, signals_stop

SMALL = FAST | {"num-server-rounds": 3, "distill-steps": 3, "train-examples": 30, "global-test-size": 50}
CLIENTS = 3


def config_for(directory: Path) -> RunConfig:
    return RunConfig.from_flower(SMALL | {"output-dir": str(directory)})


@pytest.fixture(autouse=True)
def _signals_arrive() -> Iterator[None]:
    """A job in the background ignores SIGINT, and what it starts does so, too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    run_inline(config_for(directory), CLIENTS)
    return directory


def in_round(number: int, act: Callable[[], object]) -> Callable[[dict[str, Any]], None]:
    """Return what does something while a round is under way: its row is written, its checkpoint is not."""
    return lambda row: act() if row["round"] == number else None


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_round_and_it_goes_on_as_if_it_had_not(
    whole: Path, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    directory, handlers = tmp_path / "run", [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with signals_stop(directory, [signal.SIGTERM, signal.SIGINT]):
        summary = run_inline(config_for(directory), CLIENTS, in_round(2, lambda: send(number)))
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert (summary["status"], summary["rounds"]) == ("stopped", 2)
    assert summary["error"] == "it was asked to end after round 2"
    assert json.loads((directory / "summary.json").read_text()) == summary
    assert "the run ends after this round; a second signal ends it at once" in capfd.readouterr().err
    assert not (directory / STOP).exists()
    assert [path.name[:12] for path in sorted(directory.glob("checkpoint/round-*"))] == ["round-000001", "round-000002"]
    run_inline(resumed_config({"resume-from": str(directory)}), CLIENTS)
    assert left_by(directory) == left_by(whole)


def test_a_second_signal_ends_it_at_once(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def twice() -> None:
        send(signal.SIGINT)
        send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), signals_stop(directory, [signal.SIGINT]):
        run_inline(config_for(directory), CLIENTS, in_round(2, twice))
    assert json.loads((directory / "summary.json").read_text())["status"] == "failed"
    assert [path.name[:12] for path in directory.glob("checkpoint/round-*")] == ["round-000001"]
    run_inline(resumed_config({"resume-from": str(directory)}), CLIENTS)
    assert left_by(directory) == left_by(whole)


def test_a_signal_in_the_last_round_changes_nothing(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with signals_stop(directory, [signal.SIGINT]):
        summary = run_inline(config_for(directory), CLIENTS, in_round(3, lambda: send(signal.SIGINT)))
    assert summary["status"] == "completed"
    assert left_by(directory) == left_by(whole)


def test_a_signal_before_the_run_begins_does_what_it_always_does(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), signals_stop(tmp_path / "run", [signal.SIGINT]):
        send(signal.SIGINT)
    assert not (tmp_path / "run").exists()


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exclusive(tmp_path), signals_stop(tmp_path, [signal.SIGINT]):
            send(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert not (tmp_path / STOP).exists()
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_a_thread_signals_stay_as_they_are(tmp_path: Path) -> None:
    """Where Flower's simulation runs the ServerApp."""
    seen: list[object] = []

    def inside() -> None:
        with signals_stop(tmp_path, [signal.SIGINT]):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_run_is_asked_from_outside_and_an_old_wish_is_forgotten(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    assert not ask_to_stop(directory)
    summary = run_inline(config_for(directory), CLIENTS, in_round(1, lambda: ask_to_stop(directory)))
    assert (summary["status"], summary["rounds"]) == ("stopped", 1)
    assert not ask_to_stop(directory)
    (directory / STOP).touch()  # of a run that was killed before it could obey
    summary = run_inline(resumed_config({"resume-from": str(directory)}), CLIENTS)
    assert summary["status"] == "completed"
    assert left_by(directory) == left_by(whole)
