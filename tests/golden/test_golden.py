"""Small runs come to what is kept of them, and a difference is seen."""

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from strategies.methods import METHODS
from tests.golden import compare
from tests.golden.cases import CASES
from tests.golden.compare import FILES, differences, keep, kept, recorded

QUICK = [name for name, case in CASES.items() if case.quick]


def check(names: list[str]) -> None:
    """Raise `AssertionError` with each difference; warn if only numbers could be compared."""
    key, found = recorded(names)
    lines = [f"{name}: {line}" for name in names for line in differences(kept(name), found[name], key)]
    assert not lines, "\n".join(("see python -m tests.golden --help", *lines[:40]))
    if any(key not in kept(name)["hashes"] for name in names):
        warnings.warn(f"only numbers were compared: no bits are kept for {key}", stacklevel=1)


def test_some_runs_come_to_what_is_kept_of_them() -> None:
    check(QUICK)


@pytest.mark.e2e
def test_all_other_runs_come_to_what_is_kept_of_them() -> None:
    check([name for name in CASES if name not in QUICK])


def test_every_method_has_a_case_and_every_file_is_of_one() -> None:
    assert {case.sets.get("method", "disue") for case in CASES.values()} == set(METHODS)
    assert {path.stem for path in FILES.iterdir()} == set(CASES)


def changed(found: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(found)
    *way, last = where.split("/")
    place: Any = other
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return other


@pytest.mark.parametrize(
    ("where", "value", "bits", "numbers"),
    [
        ("numbers/rounds/0/train_loss", 99.0, 1, 1),
        ("numbers/rounds/0/new_key", 1, 1, 1),
        ("numbers/clients/0/cluster", "7", 1, 1),
        ("hashes/messages", "0", 1, 0),
        ("hashes/universal.safetensors", "0", 1, 0),
    ],
)
def test_a_difference_is_seen(where: str, value: Any, bits: int, numbers: int) -> None:
    """Of what only bits tell, where they are kept for this machine."""
    file = kept("disue")
    (key, hashes), *_ = file["hashes"].items()
    found = {"numbers": file["numbers"], "hashes": hashes}
    assert differences(file, found, key) == []
    other = changed(found, where, value)
    assert len(differences(file, other, key)) == bits
    assert len(differences(file, other, "another machine")) == numbers


@pytest.mark.parametrize(("by", "seen"), [(1e-8, False), (1e-4, True)])
def test_on_another_machine_numbers_may_differ_a_little(by: float, seen: bool) -> None:
    file = kept("disue")
    other = copy.deepcopy(file["numbers"])
    tensor = next(iter(other["models"]["universal.safetensors"].values()))
    tensor[1] *= 1.0 + by
    assert bool(differences(file, {"numbers": other, "hashes": {}}, "another machine")) == seen


@pytest.mark.parametrize(
    ("others_hold", "change", "machines"),
    [(False, 1.0, {"this"}), (True, 1.0, {"this", "another"}), (True, 2.0, {"this"})],
)
def test_bits_of_other_machines_stay_where_somebody_says_that_they_hold(
    others_hold: bool, change: float, machines: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "FILES", tmp_path)
    keep("a", "another", {"numbers": {"loss": 1.0}, "hashes": {"messages": "0"}})
    keep("a", "this", {"numbers": {"loss": change}, "hashes": {"messages": "1"}}, others_hold)
    assert kept("a")["hashes"].keys() == machines
    assert kept("a")["numbers"] == {"loss": change}


def test_what_has_no_file_differs() -> None:
    assert differences({}, {}, "") == ["nothing is kept of it"]
    assert re.fullmatch(r"[a-z0-9-]+", "".join(CASES))
