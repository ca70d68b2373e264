"""One client lies in a field of its messages: what that moves for the others. `benchmarks/lies.py` tries all fields."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks import ATTACKS, AttackedApp
from benchmarks.lies import (
    CLIENTS,
    SETTINGS,
    all_lies,
    fields_of_mode,
    honest_accuracies,
    needs_robust,
    run,
    wanted_cells,
)
from benchmarks.losses import (
    MARKER,
    MODES,
    MOST_LOST,
    PAGE,
    RESULTS,
    Accuracies,
    filled,
    losses,
    offences,
    read_losses,
    table,
    worst,
    write_losses,
)
from benchmarks.lying import MESSAGES, MISSING, Lie, Place, declared, values_of, with_one_refused
from disue.errors import DataError
from disue.wire.bundle import KEY as BUNDLE
from disue.wire.table import RECORDS
from disue_cli.engines.inline import InlineGrid, simulated_nodes
from server_app.config import RunConfig
from server_app.run import execute

SEED = 100


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Accuracies]:
    """Return the accuracies of a run without a liar, with and without the robust settings."""
    known: dict[bool, Accuracies] = {}

    def accuracies(robust: bool) -> Accuracies:
        if robust not in known:
            known[robust] = run(None, SEED, tmp_path_factory.mktemp("honest") / "r", robust=robust)[0]
        return known[robust]

    return accuracies


@pytest.mark.parametrize(
    "lie",
    [
        Lie("train", "metrics", "num-examples", 10**7),
        Lie("train", "signature", "label-counts", "all in the first"),
        Lie("train", "signature", "prototypes", 1e6),
        Lie("train", "signature", "covariance", 1e12),
        Lie("train", "arrays", "*", 1e6),
        Lie("query.describe", "signature", "description", 1e38),
        Lie("query.compare", "metrics", "fits", [0.0, 1e9, 1e9, 1e9, 1e9]),
    ],
    ids=str,
)
def test_no_honest_client_loses_much_and_the_run_is_whole(lie: Lie, honest: Any, tmp_path: Path) -> None:
    accuracies, _, summary = run(lie, SEED, tmp_path / "r", robust=needs_robust(lie))
    assert summary["status"] == "completed"
    assert worst(honest(needs_robust(lie)), accuracies) <= MOST_LOST
    written = "".join(path.read_text() for path in (tmp_path / "r").iterdir() if path.suffix in (".csv", ".json"))
    assert "nan" not in written.lower()
    assert (tmp_path / "r" / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("attack", ["claimed-examples", "claimed-fits"])
def test_claims_of_several_fields_cost_no_honest_client_much(
    attack: str, honest: Any, tmp_path: Path, messages: list[str]
) -> None:
    config = RunConfig.from_flower(SETTINGS | {"seed": SEED, "output-dir": str(tmp_path / "r")})
    app = AttackedApp(ATTACKS[attack], {0})
    execute(config, InlineGrid(app, config.to_flower(), simulated_nodes(CLIENTS)))
    assert worst(honest(False), honest_accuracies(tmp_path / "r")) <= MOST_LOST
    said = [line for line in messages if "client-0 says num-examples of 1e+07; it counts as" in line]
    assert len(said) == (attack != "claimed-fits")  # once in a run


def test_without_the_cap_a_claim_is_the_model(tmp_path: Path, honest: Any) -> None:
    """So that the tests above can fail; and who has so unequal clients can raise it."""
    lie = Lie("train", "metrics", "num-examples", 10**7)
    settings = {"max-weight": 0.0, "method": "fedavg"}
    rows = []
    for name, told in (("honest", None), ("lie", lie)):
        _, _, summary = run(told, SEED, tmp_path / name, **settings)
        rows.append(summary["universal_accuracy"])
        json.loads((tmp_path / name / "summary.json").read_text())
    assert rows[1] < rows[0] - 0.1


@pytest.fixture(scope="module")
def lies(fields: dict[str, set[Place]]) -> list[Lie]:
    """Return all of them."""
    return all_lies(fields)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[Place]]:
    """Return the fields that a client fills in each mode."""
    place = tmp_path_factory.mktemp("modes")
    return {mode: fields_of_mode(mode, place / mode) for mode in MODES}


def test_every_field_that_a_record_declares_is_tried_and_none_is_filled_undeclared(
    fields: dict[str, set[Place]], lies: list[Lie]
) -> None:
    filled = set().union(*fields.values())
    assert declared().keys() - filled == set(), "add a mode in which clients fill them"
    assert {record for _, record, _ in filled - declared().keys()} == {BUNDLE}  # the nodes' own, not a client's
    assert {lie.place for lie in lies} == filled
    names = {str(lie) for lie in lies}
    assert len(names) == len(lies), "runs are told apart by the names"


def test_each_mode_has_a_field_that_no_mode_before_it_tries_or_says_what_it_tries_again(lies: list[Lie]) -> None:
    assert {lie.mode for lie in lies} == set(MODES)


def test_all_seeds_but_the_first_leave_out_refused_values_only(lies: list[Lie]) -> None:
    kept = with_one_refused(lies)
    assert {(lie.mode, lie.place) for lie in kept} == {(lie.mode, lie.place) for lie in lies}
    examples = [lie.value for lie in kept if str(lie).startswith("plain: train metrics num-examples")]
    assert examples == [0, 10**7, 1, 10**12]  # one that is refused, and those that may act
    loss = [lie.value for lie in kept if str(lie).startswith("plain: train metrics train-loss")]
    assert loss == [0, -1, 5e-324, 1.0, 10**7, 0.0, 1e9, MISSING]
    cells = wanted_cells(lies, [100, 101])
    assert len(cells) == len({(str(lie), *rest) for lie, *rest in cells})
    honest = {cell[1:] for cell in cells if cell[0] is None}
    assert {cell[1:] for cell in cells} == honest  # what each is measured against


@pytest.mark.parametrize("place", sorted(declared()), ids=" ".join)
def test_every_field_is_tried_at_both_ends_of_its_range_and_missing(place: Place) -> None:
    field, _ = declared()[place]
    values = values_of(field)
    ends = [getattr(field, end) for end in ("low", "high") if isinstance(getattr(field, end, None), int | float)]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    assert all(end in flat for end in ends)
    assert MISSING in values
    assert len(values) >= 10


def test_the_messages_of_all_records_are_known() -> None:
    assert MESSAGES.keys() == RECORDS.keys()


def _row(mode: str = "plain", seed: int = 100, **more: Any) -> dict[str, Any]:
    experts = {"1": 0.9, "2": 0.8}
    return {"mode": mode, "robust": False, "seed": seed, "experts": experts, "universal": 0.7, **more}


def _said(value: str, mode: str = "plain", seed: int = 100, **more: Any) -> dict[str, Any]:
    return _row(mode, seed, field="train metrics steps", value=value, **more)


def test_what_costs_an_honest_client_too_much_is_an_offence_and_so_is_a_run_that_fails() -> None:
    failed = {"mode": "plain", "robust": False, "seed": 100, "field": "train metrics steps", "value": "7"}
    rows = [
        _row(),
        _row("secure"),
        _said("0", experts={"1": 0.85, "2": 0.9}),
        _said("1", experts={"1": 0.84, "2": 0.9}, universal=0.6),
        _said("2", experts={"1": 0.9}),
        _said("3", "secure", experts={"1": 0.1, "2": 0.1}),
        failed | {"error": "WireError: no"},
    ]
    assert offences(losses(rows)) == [
        "plain seed 100: train metrics steps = 1: an honest client lost 0.060 of its accuracy; at most 0.05 is allowed",
        "plain seed 100: train metrics steps = 2: an honest client lost 0.800 of its accuracy; at most 0.05 is allowed",
        "plain seed 100: train metrics steps = 7: the run failed: WireError: no",
    ]
    assert [loss.universal for loss in losses(rows)] == [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, None]
    assert table(losses(rows)).splitlines()[2:] == [
        "| defaults | train metrics steps | 4 | 1 | 0.800 | `2` | 0.100 | `1` |",
        "| `privacy=secure` `num-server-rounds=3` | train metrics steps | 1 | 0 | 0.800 | `3` | 0.000 | – |",
    ]


def test_a_run_without_a_lie_that_fails_is_an_offence() -> None:
    rows = [{"mode": "dp", "robust": False, "seed": 101, "error": "DataError: no"}, _said("0", "dp", 101)]
    assert offences(losses(rows)) == [
        "dp seed 101: nobody lies: the run failed: DataError: no",
        "dp seed 101: train metrics steps = 0: the run failed: so did that without a lie",
    ]


def test_the_results_are_read_as_they_were_written_and_a_page_is_filled_again(tmp_path: Path) -> None:
    failed = {"mode": "plain", "robust": False, "seed": 100, "field": "train metrics steps", "value": "7"}
    rows = [_row(), _said("'\\x00, |'", universal=0.6), failed | {"error": "WireError: a, b"}]
    found = losses(rows)
    write_losses(tmp_path / "lies.csv", found)
    assert read_losses(tmp_path / "lies.csv") == [loss for loss in found if loss.field]
    page = f"Before.\n\n{MARKER}\nAfter.\n\nEnd.\n"
    once = filled(page, table(found))
    assert once == f"Before.\n\n{MARKER}{table(found)}\n\nAfter.\n\nEnd.\n"
    assert filled(once, table(found[:2])) == f"Before.\n\n{MARKER}{table(found[:2])}\n\nAfter.\n\nEnd.\n"
    with pytest.raises(DataError, match="the page has no line <!-- lies -->"):
        filled("Before.\n", "| |")


def test_the_page_shows_what_the_results_file_gives(lies: list[Lie]) -> None:
    """Both are made by ``python benchmarks/lies.py --output DIR --publish``."""
    _, _, rest = PAGE.read_text().partition(MARKER)
    found = read_losses(RESULTS)
    assert rest.partition("\n\n")[0] == table(found)
    assert offences(found) == []
    cells = [(lie, seed) for lie, _, _, seed in wanted_cells(lies, [100, 101, 102]) if lie]
    wanted = {(lie.mode, " ".join(lie.place), lie.said, seed) for lie, seed in cells}
    assert {(loss.mode, loss.field, loss.value, loss.seed) for loss in found} == wanted


def test_a_lie_in_another_mode_costs_no_honest_client_much(tmp_path: Path) -> None:
    lie = Lie("query", "metrics", "num-examples", 10**12, "own-data")
    settings = MODES[lie.mode].settings | {"num-server-rounds": 3}
    before = run(None, SEED, tmp_path / "honest", **settings)[0]
    accuracies, _, summary = run(lie, SEED, tmp_path / "r", **settings)
    assert summary["status"] == "completed"
    assert worst(before, accuracies) <= MOST_LOST
