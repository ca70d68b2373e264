"""A run that is asked to end does so after its round, and goes on as if it had not been."""

import html
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from common import FAST
from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from PIL import Image
from resuming import SETTINGS, left_by
from typer.testing import CliRunner

from client_app.app import app as client_app
from disue import load_run
from disue.errors import DataError, TooFewUpdates
from disue_cli.engines.inline import InlineGrid, run_inline, simulated_nodes
from disue_cli.main import app
from server_app.config import RunConfig
from server_app.report import write_report
from server_app.report.build import comparison_page
from server_app.report.reading import read_run
from server_app.resume import resumed_config
from server_app.run import execute
from server_app.run_lock import exclusive
from server_app.stopping import STOP, ask_to_stop, signals_stop

SMALL = FAST | {"num-server-rounds": 3, "distill-steps": 3, "train-examples": 30, "global-test-size": 50}
CLIENTS = 3


def config_for(directory: Path, **values: Any) -> RunConfig:
    return RunConfig.from_flower(SMALL | {"output-dir": str(directory)} | values)


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


# --- what a run leaves that ended early ------------------------------------------------------------------


SEVERAL = {"num-clusters": 2, "num-groups": 2, "share-label-counts": True, "report": True, "num-server-rounds": 4}
SOME = {"evaluate-every": 2, "fraction-evaluate": 0.5}
NUMBER = r"[0-9.]+ %"


def stopped_after(directory: Path, number: int, **values: Any) -> dict[str, Any]:
    return run_inline(config_for(directory, **SEVERAL | values), 4, in_round(number, lambda: ask_to_stop(directory)))


def words_of(directory: Path) -> str:
    """Return what a report says, without its charts and scripts."""
    text = (directory / "report.html").read_text()
    return re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_a_stopped_run_is_a_shorter_run_in_all_but_its_last_evaluation(tmp_path: Path) -> None:
    """Its models are those of a run that was planned to be as short, and so is all but the fine-tuning."""
    stopped, short = tmp_path / "stopped", tmp_path / "short"
    settings = {"initialisation": "blend"}  # what is learnt of the last evaluation is another
    summary = stopped_after(stopped, 2, **settings)
    run_inline(config_for(short, **SEVERAL | settings | {"num-server-rounds": 2}), 4)
    left, expected = left_by(stopped), left_by(short)
    assert left.keys() - {name for name in left if "checkpoint" in name} == expected.keys() - {
        name for name in expected if "checkpoint" in name
    }
    other = {"config.toml", "metrics.jsonl", "summary.json", "MODEL_CARD.md", "clients.csv"}
    same = {name for name in expected if "checkpoint" not in name} - other
    assert {"universal.safetensors", "experts/expert-1.safetensors", "teaching.csv", "portrait.safetensors"} <= same
    assert {name: left[name] for name in same} == {name: expected[name] for name in same}
    accuracies = [line.split(",")[-3:-1] for line in left["clients.csv"].decode().splitlines()]
    assert accuracies == [line.split(",")[-3:-1] for line in expected["clients.csv"].decode().splitlines()]
    assert (summary["num_clusters"], summary["rounds"]) == (2, 2)
    assert summary["bytes_down"] == sum(row["bytes_down"] for row in left["metrics.jsonl"])


def test_its_report_and_its_card_say_so(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    stopped_after(directory, 2)
    said = "The run was stopped after round 2 of 4, as was asked. Its models are those of round 2. It can go on"
    assert said in words_of(directory)
    card = (directory / "MODEL_CARD.md").read_text()
    assert said in card
    for words in (words_of(directory), card):
        assert "clients that were asked" not in words  # all were
        assert "in round" not in words
    assert "Each expert&#39;s mean weight in the vote" in words_of(directory)
    run_inline(resumed_config({"resume-from": str(directory)}), 4)
    assert "stopped" not in (directory / "MODEL_CARD.md").read_text()
    assert "was stopped" not in words_of(directory)


def test_numbers_of_an_earlier_round_and_of_some_clients_are_told_as_such(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    summary = stopped_after(directory, 3, **SOME)
    assert (summary["expert_accuracy"], summary["universal_accuracy"] is None) == (None, False)
    words, card = words_of(directory), (directory / "MODEL_CARD.md").read_text()
    remark = "in round 2 of 3, of the clients that were asked"
    assert f"each on its own test data, {remark}" in words
    assert re.search(rf"A client.s own expert is right on {NUMBER} .*{remark}", html.unescape(words))
    assert re.search(
        rf"\| own expert \| {NUMBER} \| [^|]+ \| each client's own test data, mean over clients, {remark} \|", card
    )
    assert re.search(rf"is right on {NUMBER} only, {remark}\.", card)
    assert re.search(rf"\| universal model \| {NUMBER} \| [^|]+ \| the balanced test set of the server \|", card)
    assert "No client was evaluated in the last round." in words
    assert "over the cluster's clients that were evaluated" in card
    page = comparison_page([read_run(directory), read_run(directory)])
    assert "run (1): The run was stopped after round 3 of 4, as was asked." in page
    assert re.search(rf"<tr><td>own expert</td>\s*<td>{NUMBER}, {remark}</td>", page)
    assert re.search(rf"<tr><td>universal expert</td>\s*<td>{NUMBER}</td>", page)
    assert re.search(r"<tr><td>clusters</td>\s*<td>\d</td>", page)
    assert "fine-tuning" not in card.split("## Limits")[0]  # nobody did that


def test_its_models_can_be_used(tmp_path: Path) -> None:
    directory, runner = tmp_path / "run", CliRunner()
    stopped_after(directory, 2)
    for name in ("0", "1"):
        (tmp_path / "new" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "new" / name / f"{i}.png")
    predicted = runner.invoke(app, ["predict", str(directory), str(tmp_path / "new/0/1.png"), "--expert", "auto"])
    assert (predicted.exit_code, predicted.stderr) == (0, "")
    assigned = runner.invoke(app, ["assign", str(directory), str(tmp_path / "new")])
    assert (assigned.exit_code, assigned.output.startswith("12 labelled images: cluster ")) == (0, True)
    exported = runner.invoke(
        app, ["export", str(directory), "--format", "torch", "--output", str(tmp_path / "out.pt2")]
    )
    assert (exported.exit_code, (tmp_path / "out.pt2").exists()) == (0, True)
    assert load_run(directory).summary["status"] == "stopped"


@pytest.mark.parametrize("settings", ["disue", "generator"])
def test_it_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path, settings: str) -> None:
    """Whatever it wrote when it stopped; experts of clusters that are no more are gone."""
    values = SETTINGS[settings] | SOME | {"report": False}
    run_inline(config_for(tmp_path / "whole", **SEVERAL | values), 4)
    directory = tmp_path / "run"
    stopped_after(directory, 1, **values)
    (directory / "experts" / "expert-9.safetensors").write_bytes(b"of a cluster that is no more")
    again = resumed_config({"resume-from": str(directory)})
    run_inline(again, 4, in_round(3, lambda: ask_to_stop(directory)))
    assert json.loads((directory / "summary.json").read_text())["rounds"] == 3
    run_inline(resumed_config({"resume-from": str(directory)}), 4)
    assert left_by(directory) == left_by(tmp_path / "whole")


class Broken(InlineGrid):
    """Nobody trains well from a round on."""

    def answer(self, message: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and int(message.metadata.group_id) >= 3:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
        return super().answer(message)


def test_a_run_that_failed_leaves_what_its_good_rounds_made(tmp_path: Path, messages: list[str]) -> None:
    failed, stopped = tmp_path / "failed", tmp_path / "stopped"
    stopped_after(stopped, 2)
    config = config_for(failed, **SEVERAL)
    with pytest.raises(TooFewUpdates):
        execute(config, Broken(client_app, config.to_flower(), simulated_nodes(4)))
    assert f"to go on with the run after its last checkpoint: resume-from={failed}" in messages
    other = {"config.toml", "summary.json", "MODEL_CARD.md"}
    left, expected = left_by(failed), left_by(stopped)
    assert {name: left[name] for name in left.keys() - other} == {
        name: expected[name] for name in expected.keys() - other
    }
    assert load_run(failed).experts == ["0", "1"]
    said = "The run failed after round 2 of 4: min-success-fraction: 0 of 4 clients sent a usable update in round 3"
    assert said in words_of(failed)
    assert said in (failed / "MODEL_CARD.md").read_text()
    assert "Its models are those of round 2. It can go on" in words_of(failed)


def test_a_run_that_failed_in_its_first_round_has_no_models_and_claims_none(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    config = config_for(directory, **SEVERAL)

    class Never(Broken):
        def answer(self, message: Message) -> Message:
            if message.metadata.message_type == MessageType.TRAIN:
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "busy"), reply_to=message)
            return super().answer(message)

    with pytest.raises(TooFewUpdates):
        execute(config, Never(client_app, config.to_flower(), simulated_nodes(4)))
    with pytest.raises(DataError, match=r"this run is not finished \(it failed: min-success-fraction"):
        load_run(directory)
    write_report(directory)
    words = words_of(directory)
    assert "The run failed in its first round: min-success-fraction: 0 of 4" in words
    assert "It left no models." in words
    for claim in ("No experts taught", "compares no clients", "knows nothing of", "has no test set", "was evaluated"):
        assert claim not in words
    assert words.count("Not known: the run ended without it.") == 6


def test_a_run_that_goes_on_claims_nothing_that_is_known_at_its_end_only(tmp_path: Path) -> None:
    directory, seen = tmp_path / "run", []

    def look(row: dict[str, Any]) -> None:
        write_report(directory)
        seen.append(words_of(directory))

    run_inline(config_for(directory, **SEVERAL | {"num-server-rounds": 1}), 4, look)
    for claim in ("No experts taught", "compares no clients", "knows nothing of", "has no test set", "was evaluated"):
        assert claim not in seen[0]
    assert seen[0].count("Not known yet: it is written when the run ends.") == 6
