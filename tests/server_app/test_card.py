"""The model card of a run says what the run's files say."""

import csv
import json
import re
from pathlib import Path

import pytest
from synthetic import HOSTILE, write_run

from disue.errors import DataError
from server_app.card import card, plain, write_card
from server_app.report.reading import read_run


def rows_of(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its first two lines."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_its_numbers_are_those_of_the_run(finished: Path) -> None:
    text = (finished / "MODEL_CARD.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    overall = {row[0]: row[1] for row in rows_of(text, "How good they are")}
    for name, key in [
        ("universal model", "universal_accuracy"),
        ("own expert", "expert_accuracy"),
        ("own expert, worst tenth of the clients", "worst_decile_accuracy"),
    ]:
        assert overall[name] == f"{100 * summary[key]:.1f} %"
    with (finished / "clients.csv").open() as file:
        clients = list(csv.DictReader(file))
    table = rows_of(text, "Clusters")
    assert [row[0] for row in table] == ["0", "1"]
    for row in table:
        own = [client for client in clients if client["cluster"] == row[0]]
        experts = [float(client["expert_accuracy"]) for client in own]
        assert row[1:3] == [str(len(own)), f"{sum(int(client['examples']) for client in own):,}"]
        assert row[5:] == [f"{100 * sum(experts) / len(own):.1f} %", f"{100 * min(experts):.1f} %"]
    assert ["seed", "0"] in rows_of(text, "Configuration")
    assert ["num-clusters", "2"] in rows_of(text, "Configuration")
    assert "output-dir" not in text
    assert str(finished) not in text


def test_it_is_written_for_every_method(run) -> None:  # type: ignore[no-untyped-def]
    text = (run(clients=3, method="fedavg", num_server_rounds=1).directory / "MODEL_CARD.md").read_text()
    assert text.startswith("# fedavg on digits\n\nA universal model for images of 1x8x8 pixels")
    assert "## Clusters" not in text
    assert "gate.safetensors" not in text
    assert "under a head that nobody trained" not in text


def test_it_says_so_where_a_method_has_no_universal_model(run) -> None:  # type: ignore[no-untyped-def]
    text = (run(clients=3, method="fedrep", num_server_rounds=1).directory / "MODEL_CARD.md").read_text()
    assert (
        "\n- The universal model is of no use: it is the clients' shared body under a head that nobody trained." in text
    )


def test_names_of_any_kind_stay_text(tmp_path: Path) -> None:
    names = [*HOSTILE[:4], "a|b", "`c`"]
    directory = write_run(tmp_path / "run", classes=len(names), class_names=names)
    settings = directory / "config.toml"
    settings.write_text(
        settings.read_text().replace("[task]", '[task]\ninput-shape = "1x8x8"\nmean = [0.5]\nstd = [0.2]')
    )
    (directory / "experts").mkdir()
    (directory / "experts" / "expert-0.safetensors").touch()
    text = card(read_run(directory))
    assert not re.search(r"(?<!\\)<(script|img|/script)", text)
    assert {len(row) for row in rows_of(text, "Clusters")} == {7}
    assert plain("a|b") in text


def test_a_card_that_cannot_be_written_leaves_nothing(spoilt: Path) -> None:
    (spoilt / "MODEL_CARD.md").unlink()
    write_card(spoilt)
    assert not list(spoilt.glob(".*"))


@pytest.mark.parametrize("lost", ["[task]", "[versions]", "method = ", "classes = "])
def test_a_config_that_is_not_whole_is_named_or_has_its_defaults(spoilt: Path, lost: str) -> None:
    text = (spoilt / "config.toml").read_text()
    assert lost in text
    (spoilt / "config.toml").write_text(text.replace(lost, "[other]" if lost[0] == "[" else "x = "))
    with pytest.raises(DataError, match="config.toml'( is damaged|: x: no such run config key)"):
        write_card(spoilt)
