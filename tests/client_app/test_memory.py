"""What a client keeps from round to round: by its name and the round, in its context and in files."""

from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from client_app.memory import ClientStore, Trained, memory_of
from disue.errors import DataError, WireError

RUN = "0123456789abcdef"


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def model(value: float) -> dict[str, torch.Tensor]:
    return {"body.weight": torch.full((2,), value), "head.weight": torch.full((2, 2), value)}


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_round_finds_what_was_kept_before_it_also_when_it_is_repeated(tmp_path: Path, on_disk: bool) -> None:
    store = ClientStore(context(), "ward", RUN, str(tmp_path) if on_disk else None)
    assert store.read("a", 1) is None
    for number in (1, 2, 2, 5):
        before = store.read("a", number)
        store.write("a", number, model(float(number)))
        expected = {1: None, 2: 1.0, 5: 2.0}[number]
        assert (None if before is None else float(before["head.weight"][0, 0])) == expected
    assert store.read("b", 9) is None
    assert store.read("a", 2) is None  # no more than two rounds are kept
    store.forget()
    assert store.read("a", 9) is None
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_started_anew_finds_its_files_and_another_client_or_run_does_not(tmp_path: Path) -> None:
    ClientStore(context(), "ward/../é", RUN, str(tmp_path)).write("a", 3, model(7.0))
    found = ClientStore(context(), "ward/../é", RUN, str(tmp_path)).read("a", 4)
    assert found is not None
    assert torch.equal(found["body.weight"], model(7.0)["body.weight"])
    assert ClientStore(context(), "ward", RUN, str(tmp_path)).read("a", 4) is None
    assert ClientStore(context(), "ward/../é", RUN[::-1], str(tmp_path)).read("a", 4) is None
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.parent.parent == tmp_path / RUN


def test_what_was_kept_of_rounds_that_are_undone_is_dropped() -> None:
    """A run that broke off was begun anew."""
    store = ClientStore(context(), "a", RUN)
    for number in (4, 5, 1):
        store.write("x", number, model(float(number)))
    found = store.read("x", 6)
    assert found is not None
    assert float(found["body.weight"][0]) == 1.0


def test_of_two_clients_one_forgets_and_the_other_does_not(tmp_path: Path) -> None:
    first, second = (ClientStore(context(), name, RUN, str(tmp_path)) for name in ("a", "b"))
    for store in (first, second):
        store.write("x", 1, model(1.0))
    first.forget()
    assert first.read("x", 2) is None
    assert second.read("x", 2) is not None
    second.forget()
    assert not (tmp_path / RUN).exists()


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    ClientStore(context(), "a", RUN, str(tmp_path)).write("x", 1, model(1.0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"x-000001\.safetensors"):
        ClientStore(context(), "a", RUN, str(tmp_path)).read("x", 2)


@pytest.mark.parametrize("run", ["", "..", "../../etc/passwd", RUN.upper(), RUN + "0", "0123456789abcde\n"])
def test_a_server_names_no_other_place(run: str) -> None:
    with pytest.raises(WireError, match="expected 16 hexadecimal digits"):
        ClientStore(context(), "a", run)


def test_a_control_variate_by_hand() -> None:
    """One parameter: c_i - c + (x - y) / (K eta), and the drift c - c_i."""
    memory, start = memory_of("control-variate"), {"w": torch.tensor([1.0])}
    first = memory.keep(start, Trained({"w": torch.tensor([0.4])}, 3, 0.1), None, {})
    assert float(first["w"]) == pytest.approx(0.6 / 0.3)
    shared = {"w": torch.tensor([0.5])}
    prepared = memory.prepare(start, first, shared)
    assert prepared.drift is not None
    assert float(prepared.drift["w"]) == pytest.approx(0.5 - 2.0)
    again = memory.keep(start, Trained({"w": torch.tensor([0.7])}, 3, 0.1), first, shared)
    assert float(again["w"]) == pytest.approx(2.0 - 0.5 + 0.3 / 0.3)


def test_a_personal_head_stays_at_home() -> None:
    memory = memory_of("personal-head")
    start, trained = model(1.0), model(2.0)
    assert memory.prepare(start, None, {}).start == start
    kept = memory.keep(start, Trained(trained, 1, 0.1), None, {})
    assert set(kept) == {"head.weight"}
    told = memory.told(start, trained)
    assert float(told["head.weight"][0, 0]) == 1.0
    assert float(told["body.weight"][0]) == 2.0
    own = memory.prepare(start, kept, {}).start
    assert float(own["head.weight"][0, 0]) == 2.0
    assert float(own["body.weight"][0]) == 1.0


def test_a_kind_that_there_is_not_is_one_line() -> None:
    with pytest.raises(WireError, match="the request's memory is 'diary'; there are control-variate, personal-head"):
        memory_of("diary")
