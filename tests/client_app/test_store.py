"""What a client keeps from round to round: by its name and the round, in its context or in files."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import save_file

from client_app.app import app as client_app
from client_app.store import ClientStore, check_state_path
from disue.errors import ConfigError, DataError, DiskError, WireError
from disue.models import State, build_model, get_state
from disue.nodes import NodeConfig
from disue.signature import NOTHING
from disue.wire import ForgetRequest, HelloRequest, TrainReply, TrainRequest
from disue_cli.engines.inline import InlineGrid
from server_app.config import RunConfig

RUN = "0123456789abcdef"
KIND = "control-variate"


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def model(value: float) -> State:
    return {"body.weight": torch.full((2,), value), "head.weight": torch.full((2, 2), value)}


LIKE = model(0.0)


def store(place: Path | None, name: str = "ward", run: str = RUN) -> ClientStore:
    """Return a store as a new process makes it."""
    return ClientStore(context(), name, run, None if place is None else str(place))


def found(store: ClientStore, server_round: int, kind: str = KIND) -> float | None:
    state = store.read(kind, server_round, LIKE)
    return None if state is None else float(state["head.weight"][0, 0])


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_round_finds_what_was_kept_before_it_also_when_it_is_repeated(tmp_path: Path, on_disk: bool) -> None:
    own = store(tmp_path if on_disk else None)
    assert found(own, 1) is None
    for number, before in ((1, None), (2, 1.0), (2, 1.0), (5, 2.0)):
        assert found(own, number) == before
        own.write(KIND, number, model(float(number)))
    assert found(own, 9, "personal-head") is None
    assert found(own, 2) == (1.0 if on_disk else None)
    own.write(KIND, 6, model(6.0))
    assert found(own, 5) == (2.0 if on_disk else None)  # as a run goes on from the checkpoint before its last
    assert found(own, 2) is None
    own.forget()
    assert found(own, 9) is None
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_started_anew_finds_its_files_and_another_client_or_run_does_not(tmp_path: Path) -> None:
    store(tmp_path, "ward/../é").write(KIND, 3, model(7.0))
    assert found(store(tmp_path, "ward/../é"), 4) == 7.0
    assert found(store(tmp_path, "ward"), 4) is None
    assert found(store(tmp_path, "ward/../é", RUN[::-1]), 4) is None
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.parent.parent == tmp_path
    assert file.parent.name.startswith(f"{RUN}-")


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_kept_of_rounds_that_are_undone_is_dropped(tmp_path: Path, on_disk: bool) -> None:
    """A run that broke off was begun anew."""
    own = store(tmp_path if on_disk else None)
    for number in (4, 5, 1):
        own.write(KIND, number, model(float(number)))
    assert found(own, 6) == 1.0


def test_of_two_clients_or_two_runs_one_forgets_and_the_others_do_not(tmp_path: Path) -> None:
    stores = [store(tmp_path, *names) for names in (("a", RUN), ("b", RUN), ("a", RUN[::-1]))]
    for number, own in enumerate(stores):
        own.write(KIND, 1, model(float(number)))
    stores[0].forget()
    assert [found(own, 2) for own in stores] == [None, 1.0, 2.0]
    for own in stores[1:]:
        own.forget()
    assert list(tmp_path.iterdir()) == []


def of_another_run(file: Path) -> None:
    other = store(file.parents[1], run=RUN[::-1])
    other.write(KIND, 1, model(9.0))
    (source,) = (path for path in file.parents[1].rglob("*.safetensors") if path != file)
    shutil.copy(source, file)


def of_another_round(file: Path) -> None:
    store(file.parents[1]).write(KIND, 2, model(9.0))
    (source,) = file.parent.glob("*-000002.safetensors")
    source.replace(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def with_a_value_that_is_not_finite(file: Path) -> None:
    store(file.parents[1]).write(KIND, 1, model(float("nan")))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (lambda file: file.write_bytes(b"no tensors"), "is damaged (.*)"),
    "half": (lambda file: file.write_bytes(file.read_bytes()[:-5]), "is damaged (.*)"),
    "a file of others": (lambda file: save_file(model(9.0), file), "is damaged (it says nothing of DisUE)"),
    "of another run": (of_another_run, "is of another client, run or round; remove it$"),
    "of another round": (of_another_round, "is of another client, run or round; remove it$"),
    "not finite": (with_a_value_that_is_not_finite, "is damaged ('body.weight' has values that are not finite)"),
    "a folder": (a_folder, "cannot be read (it is no file)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_damaged_or_foreign_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    spoil, words = DAMAGE[damage]
    store(tmp_path).write(KIND, 1, model(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    spoil(file)
    with pytest.raises(DataError) as caught:
        found(store(tmp_path), 2)
    line = str(caught.value)
    assert line.startswith(f"state-path: '{file}' ")
    assert "\n" not in line
    for word in words.removesuffix("$").split(".*"):
        assert word in line


@pytest.mark.parametrize(
    "like",
    [
        {"body.weight": LIKE["body.weight"]},
        LIKE | {"more": torch.zeros(1)},
        LIKE | {"body.weight": torch.zeros(3)},
        LIKE | {"body.weight": torch.zeros(2, dtype=torch.float64)},
    ],
    ids=["less", "more", "another shape", "another type"],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_of_another_model_is_refused(tmp_path: Path, on_disk: bool, like: State) -> None:
    own = store(tmp_path if on_disk else None)
    own.write(KIND, 1, model(1.0))
    with pytest.raises(DataError, match="control-variate-000001 is not of the run's model; remove it$"):
        own.read(KIND, 2, like)


@pytest.mark.parametrize(
    "name", ["control-variate-x.safetensors", "control-variate-1.safetensors", "notes.txt", ".hidden"]
)
def test_files_of_other_names_are_left_alone(tmp_path: Path, name: str) -> None:
    store(tmp_path).write(KIND, 2, model(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.with_name(name).write_text("a note")
    assert found(store(tmp_path), 3) == 1.0
    store(tmp_path).write(KIND, 3, model(2.0))
    assert file.with_name(name).read_text() == "a note"


@pytest.mark.parametrize("run", ["", "..", "../../etc/passwd", RUN.upper(), RUN + "0", "0123456789abcde\n"])
def test_a_server_names_no_other_place(run: str) -> None:
    with pytest.raises(WireError, match="expected 16 hexadecimal digits"):
        ClientStore(context(), "a", run)


# --- a state-path that cannot be used ---------------------------------------------------------------


def node(place: object) -> NodeConfig:
    return NodeConfig.from_flower({"name": "ward", "data-path": "/data", "state-path": str(place)})


def test_the_folder_of_the_state_path_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    check_state_path(NodeConfig.from_flower({"name": "ward", "data-path": "/data"}))
    for _ in range(2):
        check_state_path(node(tmp_path / "a" / "b"))
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("/proc/state", "No such file or directory"),
        ("~nobody-of-this-name/state", "Could not determine home directory."),
        ("a\0b", "embedded null byte"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_state_path_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        check_state_path(node(place))
    shown = place.replace("\0", "?")
    assert str(caught.value) == (
        f"node config of 'ward': state-path: got '{shown}', where nothing can be written ({why}); "
        "use a folder that the node may read and write, or none"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"where nothing can be written \(Permission denied\)"):
        check_state_path(node(tmp_path))


@pytest.mark.parametrize("trouble", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_is_full_is_told_when_the_node_is_asked_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: int
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(trouble, os.strerror(trouble))

    config = RunConfig.from_flower({"model": "mlp"})
    grid = InlineGrid(
        client_app, config.to_flower(), [{"partition-id": 0, "num-partitions": 2, "state-path": str(tmp_path)}]
    )
    monkeypatch.setattr(os, "fsync", fails)
    (reply,) = grid.send_and_receive([HelloRequest().to_message(grid.get_node_ids()[0])])
    assert reply.error.reason == (
        f"ConfigError: node config of 'client-0': state-path: got '{tmp_path}', where nothing can be written "
        f"({os.strerror(trouble)}); use a folder that the node may read and write, or none"
    )
    assert list(tmp_path.iterdir()) == []


def a_file_in_its_place(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("")


def a_file_in_the_clients_place(place: Path) -> None:
    (folder,) = place.iterdir()
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("spoil", [a_file_in_its_place, a_file_in_the_clients_place])
def test_a_folder_that_is_lost_later_is_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    place = tmp_path / "state"
    store(place).write(KIND, 1, model(1.0))
    spoil(place)
    with pytest.raises(DiskError, match=f"^state-path: '{place}/{RUN}-[0-9a-f]+' cannot be written .*; use a folder"):
        store(place).write(KIND, 2, model(2.0))


# --- a client that trains ---------------------------------------------------------------------------


def trained_in(grid: InlineGrid, server_round: int, value: float = 0.0, memory: str = KIND) -> str | State:
    """Let the one client train from a model moved by a value; return its model, or why it failed."""
    start = {name: tensor + value for name, tensor in get_state(build_model("mlp", (1, 8, 8), 10)).items()}
    request = TrainRequest(start, server_round, memory=memory, run=RUN, shared={})
    (reply,) = grid.send_and_receive([request.to_message(grid.get_node_ids()[0])])
    return str(reply.error.reason) if reply.has_error() else TrainReply.from_message(reply, start, NOTHING).state


def client_with(place: Path, **values: object) -> InlineGrid:
    config = RunConfig.from_flower({"model": "mlp", "train-examples": 40, "momentum": 0.0} | values)
    return InlineGrid(
        client_app, config.to_flower(), [{"partition-id": 0, "num-partitions": 2, "state-path": str(place)}]
    )


def everything_in(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("memory", ["control-variate", "personal-head"])
def test_a_client_keeps_nothing_that_is_not_finite(tmp_path: Path, memory: str) -> None:
    grid = client_with(tmp_path)
    trained_in(grid, 1, memory=memory)
    before = everything_in(tmp_path)
    assert list(before) == [f"{memory}-000001.safetensors"]
    with pytest.raises(WireError, match="not finite"):
        trained_in(grid, 2, 1e38, memory=memory)
    assert everything_in(tmp_path) == before
    assert not isinstance(trained_in(grid, 3, memory=memory), str)
    assert list(everything_in(tmp_path)) != list(before)


def test_a_client_whose_file_is_damaged_says_so_and_trains_when_it_is_gone(tmp_path: Path) -> None:
    grid = client_with(tmp_path)
    trained_in(grid, 1)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"")
    said = trained_in(grid, 2)
    assert isinstance(said, str)
    assert said.startswith(f"DataError: state-path: '{file}' is damaged")
    assert everything_in(tmp_path) == {file.name: b""}
    file.unlink()
    assert not isinstance(trained_in(grid, 2), str)


def test_a_client_that_is_told_that_the_run_is_over_deletes_what_it_kept_and_says_nothing(tmp_path: Path) -> None:
    grid = client_with(tmp_path)
    trained_in(grid, 1)
    for run, left in ((RUN[::-1], 1), (RUN, 0), (RUN, 0)):
        (reply,) = grid.send_and_receive([ForgetRequest(run).to_message(grid.get_node_ids()[0])])
        assert not reply.content
        assert len(everything_in(tmp_path)) == left
    assert list(tmp_path.iterdir()) == []
    (reply,) = grid.send_and_receive([ForgetRequest("..").to_message(grid.get_node_ids()[0])])
    assert reply.error.reason == "WireError: the request's run is '..'; expected 16 hexadecimal digits"


# --- processes that are killed ----------------------------------------------------------------------


def answer(place: Path, rounds: list[int], dies_in: str, results: Path) -> None:
    """Answer requests to train as a node does, and die as by a power cut."""
    grid = client_with(place)

    def dies(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for number in rounds:
        if number == rounds[-1] and dies_in:
            setattr(os, dies_in, dies)
        state = trained_in(grid, number, 0.01 * number, "personal-head")
        assert isinstance(state, dict)
        np.savez(results / str(number), **{name: tensor.numpy() for name, tensor in state.items()})


def in_a_process(place: Path, rounds: list[int], dies_in: str, results: Path) -> None:
    results.mkdir(exist_ok=True)
    context = get_context("forkserver")
    context.set_forkserver_preload(["disue_cli.engines.inline", "client_app.training_job"])
    process = context.Process(target=answer, args=(place, rounds, dies_in, results))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if dies_in else 0)


@pytest.mark.e2e
def test_processes_that_are_killed_one_after_the_other_are_as_one(tmp_path: Path) -> None:
    """While they write: before the file is safe, and before it has its name."""
    whole, killed, place = tmp_path / "whole", tmp_path / "killed", tmp_path / "state"
    in_a_process(tmp_path / "other", [1, 2, 3], "", whole)
    for rounds, dies_in in (([1, 2], "fsync"), ([2, 3], "replace"), ([3], "")):
        in_a_process(place, rounds, dies_in, killed)
        parts = list(place.rglob("*.part"))
        assert len(parts) == bool(dies_in)  # what another process left is removed
        complete = [path.name for path in sorted(place.rglob("*.safetensors"))]
        done = rounds[-1] - bool(dies_in)
        assert complete == [f"personal-head-{number:06}.safetensors" for number in range(1, done + 1)]
    for number in ("1.npz", "2.npz", "3.npz"):
        with np.load(whole / number) as expected, np.load(killed / number) as found:
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert everything_in(place) == everything_in(tmp_path / "other")
