"""How sure each accuracy is said to be, in the report, the card and on the screen."""

import io
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from synthetic import write_run

from disue_cli.commands.simulate import summary_table
from server_app.card import card
from server_app.report import read_run
from server_app.report.intervals import in_words, over_clients
from server_app.report.words import cards, sentences


def test_where_only_clients_tested_each_mean_has_an_interval_over_them(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", clients=12, dataset="own", **{"client-models": "cnn,mlp"})
    settings = directory / "config.toml"
    task = '[task]\ninput-shape = "1x8x8"\nmean = [0.5]\nstd = [0.2]'
    settings.write_text(settings.read_text().replace("[task]", task))
    clients = (directory / "clients.csv").read_text().splitlines()
    small = [clients[0], *(line.replace(",cnn,", ",mlp,") if i % 2 else line for i, line in enumerate(clients[1:]))]
    (directory / "clients.csv").write_text("\n".join(small) + "\n")
    for name in ("metrics.jsonl", "summary.json"):
        text = re.sub(r'"average_accuracy": [0-9.]+', '"average_accuracy": null', (directory / name).read_text())
        text = re.sub(r'("universal_accuracy": )', r'"universal_accuracy_mlp": 0.5, \1', text)
        (directory / name).write_text(text)
    (directory / "portrait.safetensors").unlink()
    record = read_run(directory)
    known = {model: [own.universal for own in record.clients if own.model == model] for model in ("cnn", "mlp")}
    assert [len(values) for values in known.values()] == [6, 6]
    cnn, mlp = (in_words(over_clients(values)) for values in known.values())
    experts = in_words(over_clients([own.expert for own in record.clients]))
    assert len({cnn, mlp, experts}) == 3
    assert f"test examples of the clients (95 % interval over clients {cnn})" in " ".join(sentences(record))
    assert f"95 % interval over clients {cnn}" in cards(record)[0].note
    assert f"95 % interval over clients {experts}" in cards(record)[1].note
    rows = [line.split(" | ") for line in card(record).splitlines()]
    intervals = {row[0].removeprefix("| "): row[2] for row in rows if len(row) == 4}
    assert (intervals["universal model"], intervals["universal model, mlp"], intervals["own expert"]) == (
        cnn,
        mlp,
        experts,
    )
    screen = {line.split("│")[1].strip(): line for line in shown(summary_table(record, 10)).splitlines() if "│" in line}
    for name, expected in (("accuracy", cnn), ("accuracy, mlp", mlp)):
        assert f"95 % interval over clients {expected}" in screen[f"universal {name}"]
    assert f"95 % interval over clients {experts}" in screen["expert accuracy"]


def shown(table: Table) -> str:
    """Return a table as a wide screen shows it."""
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
