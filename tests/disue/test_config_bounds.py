"""Whatever a run config may be is written, read again and gone on from: the bounds have one source."""

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from disue.errors import ConfigError
from disue.runs.reading import load_run
from disue_cli.engines.inline import run_inline
from server_app.card import write_card
from server_app.config import RunConfig, stored_settings
from server_app.report.reading import read_run
from server_app.resume import read_settings, resumed_config

FIELDS = RunConfig.complete().model_fields.values()
NUMBERS = {str(field.alias): field for field in FIELDS if field.annotation in (int, float)}
GAPS = {"prox-mu": (-1.0, 0.0)} | dict.fromkeys(("max-norm", "max-weight", "max-fit", "prototype-limit"), (0.0, 1.0))
"""Between bounds, and yet not allowed."""


def bounds(key: str) -> tuple[Any, Any]:
    """Return the least and the greatest value that a key declares."""
    kind, ends = NUMBERS[key].annotation, {}
    for rule in NUMBERS[key].metadata:
        for word, towards in (("ge", None), ("gt", math.inf), ("le", None), ("lt", -math.inf)):
            if hasattr(rule, word):
                end = getattr(rule, word)
                ends[word[0]] = end if towards is None else math.nextafter(end, towards)
    return kind(ends["g"]), kind(ends["l"])  # type: ignore[misc]


def read_again(config: RunConfig) -> RunConfig:
    """Return what is read from the ``config.toml`` that a run with this config writes."""
    return RunConfig.from_flower(stored_settings(tomli_w.dumps({"run": config.to_flower()}))["run"])


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_two_bounds_and_what_they_let_through_is_read_again(key: str) -> None:
    for end in bounds(key):
        config = RunConfig.from_flower({key: end})
        assert config.to_flower()[key] == end
        assert read_again(config) == config


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_of_any_size_is_refused_by_name_or_read_again(key: str) -> None:
    least, greatest = bounds(key)
    for value in (1e300, 1e19, -1e19, 5e-324, math.inf, math.nan, 10**30, 2**63, -(2**63) - 1):
        gap = GAPS.get(key, (0.0, 0.0))
        if (
            least <= value <= greatest
            and not gap[0] < value < gap[1]
            and (NUMBERS[key].annotation is float or isinstance(value, int))
        ):
            config = RunConfig.from_flower({key: value})
            assert read_again(config) == config
        else:
            with pytest.raises(ConfigError, match=f"^{key}: got "):
                RunConfig.from_flower({key: value})


def _values(key: str) -> st.SearchStrategy[Any]:
    default = RunConfig().to_flower()[key]
    if key in NUMBERS:
        least, greatest = bounds(key)
        if isinstance(default, int):
            return st.integers(least, greatest)
        gap = GAPS.get(key)
        return st.just(gap[0]) | st.floats(gap[1], greatest) if gap else st.floats(least, greatest)
    if key in ("output-dir", "resume-from", "data-dir", "dataset", "method"):
        return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    return st.booleans() if isinstance(default, bool) and key != "robust" else st.just(default)


@settings(max_examples=25)
@given(st.fixed_dictionaries({key: _values(key) for key in RunConfig().to_flower()}))
def test_a_whole_config_of_any_values_is_read_again(values: dict[str, Any]) -> None:
    config = RunConfig.from_flower(values)
    assert config.to_flower() == values
    assert read_again(config) == config


@pytest.mark.parametrize("end", [0, 1])
def test_a_run_with_every_number_at_its_end_is_read_by_all_that_read_runs(spoilt: Path, end: int) -> None:
    path = spoilt / "config.toml"
    table = tomllib.loads(path.read_text())
    ends = {key: bounds(key)[end] for key in NUMBERS}
    table["run"] |= ends
    path.write_text(tomli_w.dumps(table))
    config, _ = read_settings(spoilt)
    assert config.to_flower() == load_run(spoilt).config.to_flower()
    assert read_run(spoilt).config.items() >= ends.items()
    card = write_card(spoilt).read_text()
    assert f"| seed | {ends['seed']} |" in card
    assert f"| max-norm | {ends['max-norm']} |" in card


def test_what_is_beyond_the_bounds_in_a_file_is_not_called_damage(spoilt: Path) -> None:
    path = spoilt / "config.toml"
    path.write_text(path.read_text().replace("alpha = 0.1", "alpha = 1e19"))
    for reader in (read_settings, load_run, write_card):
        with pytest.raises(Exception, match=r"config.toml': alpha: got 1e\+19; .* less than or equal") as caught:
            reader(spoilt)  # type: ignore[operator]
        assert "damaged" not in str(caught.value)


def test_a_run_with_numbers_at_their_ends_goes_on(run) -> None:  # type: ignore[no-untyped-def]
    far = {
        "seed": 2**63 - 1,
        "max-norm": 1e9,
        "clip-norm": 1e9,
        "prototype-limit": 1e9,
        "max-examples": 10**12,
        "prototype-weight": 1e6,
        "temperature": 1e4,
        "round-timeout": 1e7,
        "join-timeout": 1e7,
        "prox-mu": 1e-300,
        "reply-memory": 10**9,
        "alpha": 1e6,
        "clients-at-once": 10**6,
        "student-share": 1e-6,
        "num-clusters": 2,
    }
    first = run(clients=4, num_server_rounds=1, global_test_size=200, **far)
    summary = run_inline(resumed_config({"resume-from": str(first.directory), "num-server-rounds": 2}), 4)
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
