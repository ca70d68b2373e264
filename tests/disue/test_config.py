import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disue.assignments import assignment, parse_assignments, parse_seeds
from disue.errors import ConfigError
from server_app.config import RunConfig

ROOT = Path(__file__).parents[2]


def test_pyproject_declares_every_key_with_the_same_default() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert declared == RunConfig().to_flower()


def test_flower_round_trip_keeps_every_value() -> None:
    config = RunConfig(seed=3, scenario="rotation", alpha=0.5, prior_correction=False)
    assert RunConfig.from_flower(config.to_flower()) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"num-sever-rounds": 3},
            ["num-sever-rounds: no such run config key (did you mean 'num-server-rounds'?); all keys are in docs/"],
        ),
        ({"alpha": -1.0}, ["alpha: got -1.0", "greater than or equal to"]),
        ({"num-server-rounds": "many"}, ["num-server-rounds: got 'many'", "integer"]),
        ({"num-server-rounds": 2.5}, ["num-server-rounds: got 2.5", "integer"]),
        ({"seed": True}, ["seed: got True", "integer"]),
        ({"alpha": float("inf")}, ["alpha: got inf", "finite"]),
        ({"alpha": float("nan")}, ["alpha: got nan"]),
        ({"dataset": 7}, ["dataset: got 7", "string"]),
        ({"seed": 2**63}, ["seed: got 9223372036854775808", "less than or equal to"]),
        ({"num-groups": 10**20}, ["num-groups: got 100000000000000000000", "1000"]),
        ({"temperature": 1e-300}, ["temperature: got 1e-300", "0.01"]),
        ({"prox-mu": -0.5}, ["prox-mu: got -0.5; use 0 or more, or -1 for the method's own"]),
        ({"prototype-limit": 0.5}, ["prototype-limit: got 0.5; use 0 (off) or a number of at least 1"]),
        ({"max-norm": 0.9}, ["max-norm: got 0.9; use 0 (off) or a number of at least 1"]),
        ({"device": "tpu"}, ["device: got 'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ({"fraction-train": 1.5}, ["fraction-train: got 1.5", "less than or equal to 1"]),
        ({"client-models": "mlp,,cnn"}, ["client-models: got 'mlp,,cnn'; use names of models, separated by commas"]),
    ],
)
def test_a_bad_key_or_value_is_one_line_that_names_it(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flower(values)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert len(message) < 200


def test_each_listed_model_has_an_equal_part_of_the_clients() -> None:
    listed = RunConfig(client_models="mlp, cnn")
    assert [listed.client_model(i, 5) for i in range(5)] == ["mlp", "mlp", "mlp", "cnn", "cnn"]
    assert [RunConfig(model="mlp").client_model(i, 3) for i in range(3)] == ["mlp"] * 3


def test_assignments_are_toml_values_and_bare_words_are_strings() -> None:
    parsed = parse_assignments(["a=1", "b=0.5", "c=true", "d=fashion-mnist", 'e="x y"', "f=2024-01-01", "g="])
    assert parsed == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "fashion-mnist",
        "e": "x y",
        "f": "2024-01-01",
        "g": "",
    }


@given(st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text())
def test_an_assignment_is_read_as_what_it_was_written_of(value: bool | int | float | str) -> None:
    assert parse_assignments([assignment("key", value)]) == {"key": value}


@pytest.mark.parametrize("word", ["seed", "=3", " =3"])
def test_an_assignment_without_a_key_or_sign_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        parse_assignments([word])


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", [0, 1, 2]),
        ("20", list(range(20))),
        ("0-2", [0, 1, 2]),
        ("7, 8,9", [7, 8, 9]),
        ("5,", [5]),
        ("904,", [904]),
        ("904-904", [904]),
        ("100 - 102, 7", [100, 101, 102, 7]),
        (f"{2**63 - 1},", [2**63 - 1]),
    ],
)
def test_seeds_are_a_count_a_list_or_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds
